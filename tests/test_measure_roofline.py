"""Bytes and FLOPs are counted from shapes and agree with what the tensors hold; repetition is counted by hand."""

from __future__ import annotations

import pytest
import torch

from flashspec.measure.clock import Plan, interleaved_seconds
from flashspec.measure.repetition import repeated_share
from flashspec.measure.roofline import Work, body_work, roof, stored_bytes
from flashspec.models.config import from_hf
from flashspec.models.synthetic import SHAPES, random_rows, shape, synthetic


def test_body_weights_are_the_bytes_that_the_layers_hold() -> None:
    model = synthetic("reference-draft", torch.bfloat16)
    matrices = sum(p.nbytes for layer in model.layers for p in layer.parameters() if p.ndim == 2)
    cache = 2 * model.config.kv_bytes_per_token(4)
    assert body_work(model.config, rows=1, seen=0).bytes == matrices + cache
    assert matrices <= stored_bytes(model.layers) <= 1.01 * matrices


def test_five_rows_read_the_weights_once_and_compute_five_times() -> None:
    config = SHAPES["reference-target"]
    one, five = body_work(config, 1, 0), body_work(config, 5, 0)
    assert five.bytes < 1.05 * one.bytes and five.flops == pytest.approx(5 * one.flops, rel=0.01)


def test_a_long_past_is_read_too() -> None:
    config = SHAPES["Qwen3-0.6B"]
    grown = body_work(config, 1, 1000).bytes - body_work(config, 1, 0).bytes
    assert grown == 1000 * config.kv_bytes_per_token(4)


def test_works_add() -> None:
    assert sum([Work(1, 2), Work(6, 8)], Work()) == Work(7, 10)


def test_memory_reads_more_than_a_hundred_megabytes_a_second() -> None:
    assert roof("cpu") > 1e8


def test_a_shape_faithful_model_has_the_published_counts_and_finite_logits() -> None:
    config = SHAPES["Qwen3-0.6B"]
    assert config.body_parameters + config.head_parameters == pytest.approx(596e6, rel=0.01)
    model = synthetic(shape("reference-target", depth=2), torch.float32, seed=1)
    logits = model(torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 3, 16384) and bool(logits.isfinite().all())
    again = synthetic(shape("reference-target", depth=2), torch.float32, seed=1)
    assert torch.equal(again(torch.tensor([[1, 2, 3]])), logits)


def test_unknown_shapes_and_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="known: reference-target"):
        synthetic("qwen9")
    with pytest.raises(ValueError, match="depth must be at least 1"):
        shape("qwen3-0.6b", depth=0)


def test_random_rows_do_not_repeat_a_row() -> None:
    rows = random_rows(3000, 1024)
    assert len(torch.unique(rows[:, :2], dim=0)) == 3000


def test_repetition_is_counted_as_by_hand() -> None:
    assert repeated_share([1, 2, 1, 2, 1], 2) == 0.5
    assert repeated_share([1, 2, 3], 1) == 0.0 and repeated_share([], 3) == 0.0
    assert repeated_share([5] * 10, 1) == 0.9
    with pytest.raises(ValueError, match="n must be at least 1"):
        repeated_share([1], 0)


def test_interleaved_seconds_keep_raw_repeats() -> None:
    calls: list[str] = []
    raw = interleaved_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, Plan(3, 1, evict_megabytes=1))
    assert calls == ["a", "b"] * 4 and len(raw["a"]) == len(raw["b"]) == 3
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Plan(repeats=0)


@pytest.mark.parametrize(
    ("folder", "name"), [("target", "reference-target"), ("narrow", "reference-draft"), ("shallow", "reference-shallow")]
)
def test_reference_shapes_are_those_of_the_shipped_models(folder: str, name: str) -> None:
    from dataclasses import replace

    from flashspec.decoding.models import SHIPPED
    from flashspec.models.folder import read_config

    if not (SHIPPED / folder).exists():
        pytest.skip("the reference models are not built")
    shipped = from_hf(read_config(SHIPPED / folder))
    assert replace(shipped, bos=None, eos=()) == SHAPES[name]

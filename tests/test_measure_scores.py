"""Scores, parts and timed decodes follow the events; bytes are those that tensors hold, each counted once."""

import gc
from dataclasses import replace

import pytest
import shelf
import torch
from shelf import refused
from torch import Tensor

from flashspec import METHODS, Limits, Method, Models, Sampling, Transformer, build, decode, generate
from flashspec.decoding.method import method_named
from flashspec.decoding.models import SHIPPED
from flashspec.measure import clock
from flashspec.measure.parts import held, stage_costs
from flashspec.measure.runs import repeated_share, timed
from flashspec.models.checkpoint import read_config
from flashspec.models.config import from_hf
from flashspec.models.synthetic import SHAPES, random_rows, shape, synthetic

START = [5, 77, 130, 9, 200, 31]
WARM = Sampling(1.0, seed=3)


@pytest.fixture(scope="module")
def models():
    return shelf.pair()


def stages(models, name, **changes):
    return build(method_named(name, changes), models, WARM, 128)


def test_costs_of_a_hierarchy_leave_nothing_out_and_its_stages_ready(models):
    used, fresh = stages(models, "hispec"), stages(models, "hispec")
    found = stage_costs(used, list(range(1, 40)), [2, 5])
    assert set(found) == {"token", "head", "check_1", "check_2"} and min(found.values()) > 0
    again, expected = ([t for step in decode(each, START, Limits(12)) for t in step.tokens] for each in (used, fresh))
    assert again == expected


@pytest.mark.parametrize(("name", "options"), [("baseline", {}), ("dense", {}), ("flash", {"probes": 8})])
def test_the_timed_round_is_the_decodes_own(models, name, options):
    def written(text):
        bench = held(stages(models, name, **options), [*START, *text])
        for _ in range(2):
            bench.burst()
            bench.read()
            if len(bench.stages) > 1:
                bench.check()
        return bench.state.tokens[bench.start : bench.state.length].tolist()

    behind = next(decode(stages(models, name, **options), [*START, 4, 5, 6], Limits(12)))
    assert written([4, 5, 6]) == behind.tokens != written([6, 5, 4])


def test_interleaved_seconds_keep_raw_repeats():
    calls = []
    raw = clock.interleaved_seconds({name: lambda name=name: calls.append(name) for name in "ab"}, 3, 1, megabytes=1)
    assert calls == ["a", "b"] * 4 and len(raw["a"]) == len(raw["b"]) == 3


@pytest.mark.parametrize("name", ["baseline", "dense", "self_speculation", "hispec"])
def test_a_timed_decode_is_recorded_as_the_untimed_one_writes_whatever_the_stop_tokens(models, name):
    plain = generate(models, [1, 2, 3], "baseline", WARM, max_new_tokens=10, stop=())
    stopping = shelf.pair()
    stopping.target.config = replace(models.target.config, eos=tuple(plain.tokens))
    found = timed(stopping, METHODS[name], WARM, (1, 2, 3), 10)
    assert list(found.tokens) == plain.tokens and found.seconds > 0 and found.counts["emitted"] == 10
    levels = {"baseline": 0, "hispec": 2}.get(name, 1)
    assert [f"actions_{level}" in found.counts for level in (1, 2, 3)] == [level <= levels for level in (1, 2, 3)]


def test_repetition_is_counted_as_by_hand():
    assert repeated_share([1, 2, 1, 2, 1], 2) == 0.5 and repeated_share([5] * 10, 1) == 0.9
    assert repeated_share([1, 2, 3], 1) == 0.0 and repeated_share([], 3) == 0.0
    assert clock.roof("cpu") > 0
    assert len(torch.unique(random_rows(3000, 1024)[:, :2], dim=0)) == 3000


def test_a_synthetic_model_is_that_of_its_seed_and_shipped_shapes_are_known():
    one, two = (synthetic(shape("reference-target", depth=2), torch.float32, seed=1)(torch.tensor([[1, 2, 3]])) for _ in "12")
    assert one.shape == (1, 3, 16384) and bool(one.isfinite().all()) and torch.equal(one, two)
    refused("known: reference-target", synthetic, "qwen9")
    refused("layers must be at least 1", shape, "qwen3-0.6b", depth=0)
    for folder, name in {"target": "reference-target", "narrow": "reference-draft", "shallow": "reference-shallow"}.items():
        assert replace(from_hf(read_config(SHIPPED / folder)), bos=None, eos=()) == SHAPES[name]


ALLOWED = 1.1
EXITS = {"reference-target": (2, 4), "qwen3-0.6b": (3, 7)}


def live():
    """Bytes of every tensor that there is, on no device too; one storage counts once."""
    gc.collect()
    found = [each.untyped_storage() for each in gc.get_objects() if issubclass(type(each), Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in found}.values())


def ratio(shapes, method):
    """Bytes of models and stages of a method over those of plain decoding with the first of them."""
    totals = []
    for wanted, used in ((method, shapes), (METHODS["baseline"], shapes[:1])):
        before = live()
        with torch.device("meta"):
            made = [Transformer(shape(*each)).to(torch.bfloat16).eval().requires_grad_(False) for each in used]
        stages = build(wanted, Models(*made))
        totals.append(live() - before)
        del stages, made
    return totals[0] / totals[1]


@pytest.mark.parametrize("name", EXITS)
def test_a_hierarchy_needs_at_most_a_tenth_more(name):
    assert 1.0 <= ratio([(name,)], Method(exits=EXITS[name], k=2)) <= ALLOWED
    assert 1.0 <= ratio([(name,)], Method(exits=EXITS[name][:1])) <= ALLOWED
    assert ratio([("reference-target",), ("reference-target", 4)], METHODS["dense"]) > ALLOWED  # the control: a second model

"""A checkpoint's memory: estimated before loading, and measured in a fresh process."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_awq import SMALL, write_awq
from test_transformer import BASE, randomised

from flashspec.measure.resident import anonymous_bytes, load_in_fresh_process
from flashspec.models import memory
from flashspec.models.memory import Form, free_bytes, needed_bytes, weight_bytes
from flashspec.models.transformer import Transformer
from flashspec.study import loading

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.mark.parametrize("config", [BASE, replace(BASE, tied=False), replace(BASE, family="opt", kv_heads=4)])
def test_the_estimate_is_the_size_of_the_matrices(config):
    model = randomised(config)
    held = sum(p.nbytes for name, p in model.named_parameters() if p.ndim == 2 and name != "positions.weight")
    assert weight_bytes(config, Form(torch.float32)) == held
    assert weight_bytes(config, Form(torch.bfloat16)) == held // 2


def test_a_model_that_does_not_fit_is_refused_with_the_estimate(tmp_path, monkeypatch):
    write_awq(SMALL, tmp_path)
    dense, int4 = (needed_bytes(SMALL, Form(torch.bfloat16, group)) for group in (0, 128))
    monkeypatch.setattr(memory, "free_bytes", lambda device: (dense + int4) // 2)
    with pytest.raises(ValueError, match="needs about 0.0 GB of cpu memory in bfloat16 and 0.0 GB are free") as refused:
        Transformer.load(tmp_path, weights="dense")
    assert "\n" not in str(refused.value)
    Transformer.load(tmp_path, weights="int4")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    Transformer.load(tmp_path, weights="dense")


@linux
def test_free_memory_and_anonymous_memory_are_plausible():
    assert (free_bytes(torch.device("cpu")) or 0) > 1 << 20
    before = anonymous_bytes(os.getpid())
    held = torch.ones(1 << 24)
    assert anonymous_bytes(os.getpid()) - before > 0.9 * held.nbytes


@linux
@pytest.mark.slow
def test_a_fresh_process_takes_little_more_than_the_files():
    row = next(iter(loading.measure(replace(loading.PRESETS["smoke"], formats=("awq",)))))
    assert 0.7 * row.checkpoint_bytes < row.peak - row.before and row.after <= row.peak
    assert 2e7 < row.checkpoint_bytes < 6e7 and row.seconds > 0


@linux
@pytest.mark.slow
def test_a_load_that_fails_is_reported(tmp_path):
    with pytest.raises(ValueError, match="the loading process failed: FileNotFoundError: .*config.json"):
        load_in_fresh_process(tmp_path, "auto")


@pytest.mark.parametrize("group", [0, 128])
def test_the_written_checkpoint_has_the_size_that_was_asked_for_and_loads(group, tmp_path):
    params = replace(loading.PRESETS["smoke"], megabytes=20)
    loading.write_checkpoint(tmp_path, loading.sized(params, group), group, 8_000_000)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and sum(path.stat().st_size for path in files) == pytest.approx(20e6, rel=0.15)
    assert Transformer.load(tmp_path, weights="int4" if group else "dense").config.layers >= 1


def test_memory_that_torch_keeps_for_reuse_counts_as_free(monkeypatch):
    """A model that was let go leaves its memory with torch's allocator, where the next one of its size finds it."""
    told = {"mem_get_info": (30, 100), "memory_reserved": 60, "memory_allocated": 20}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda")) == 70

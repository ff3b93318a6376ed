"""Fixed shapes give the rows and texts of the torch engine, and depend on the position only through a tensor."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_transformer import BASE, randomised
from toys import random_model

from flashspec.models import graphs
from flashspec.models.engine import TorchEngine
from flashspec.models.graphs import FixedEngine, wanted
from flashspec.models.reader import engine_for

IDS = torch.randint(0, 61, (60,), generator=torch.Generator().manual_seed(0))
CUTS = [20, 21, 22, 27, 31, 32, 48, 59]


def models():
    opt = replace(BASE, family="opt", kv_heads=4, attention_bias=True, mlp_bias=True, norm_eps=1e-5)
    return {
        "qwen3": random_model(1, 3).double(),
        "qwen2": randomised(replace(BASE, family="qwen2")).requires_grad_(False).double(),
        "opt": randomised(opt).requires_grad_(False).double(),
    }


def rows(engine):
    edges = [0, *CUTS, len(IDS)]
    return torch.cat([engine.run(engine.embed(IDS[a:b]).clone(), a) for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "opt"])
@torch.inference_mode()
def test_fixed_shapes_give_the_rows_of_the_torch_engine(name, monkeypatch):
    monkeypatch.setattr(graphs, "KEYS", 24)
    made = models()[name]
    whole = rows(TorchEngine(made, 0, 2, 64))
    assert torch.allclose(rows(FixedEngine(made, 0, 2, 64)), whole, rtol=1e-10, atol=1e-10)
    honest = graphs.FixedSlot
    monkeypatch.setattr(graphs, "FixedSlot", lambda slot, mask: honest(slot, mask.roll(1, 1)))  # the control: one key more
    assert not torch.allclose(rows(FixedEngine(made, 0, 2, 64)), whole, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_forward_made_at_one_position_serves_every_other():
    """What a recording relies on: nothing but `begin` and the rows changes from call to call."""
    made = models()["qwen3"]
    engine, wanted_rows = FixedEngine(made, 0, 2, 64), rows(TorchEngine(made, 0, 2, 64))
    engine.run(engine.embed(IDS[:20]), 0)
    forward = engine.forward(1, 64)
    for position in range(20, 30):
        engine.begin.fill_(position)
        assert torch.allclose(forward(engine.embed(IDS[position : position + 1]))[0], wanted_rows[position])
    stale = engine.begin.fill_(28) is not None and forward(engine.embed(IDS[29:30]))[0]
    assert not torch.allclose(stale, wanted_rows[29])


def test_the_flag_decides_and_refuses_nonsense(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for value, answers in {"auto": (False, True), "0": (False, False), "eager": (True, True)}.items():
        monkeypatch.setenv(graphs.FLAG, value)
        assert (wanted(cpu), wanted(cuda)) == answers
        assert type(engine_for(models()["qwen3"], 0, 2, 64)) is (FixedEngine if answers[0] else TorchEngine)
    monkeypatch.setenv(graphs.FLAG, "yes")
    with pytest.raises(ValueError, match="FLASHSPEC_GRAPHS must be one of auto, 0, eager, got 'yes'"):
        wanted(cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_a_recording_gives_the_rows_of_its_eager_twin(monkeypatch):
    made = random_model(1, 3).cuda()
    monkeypatch.setenv(graphs.FLAG, "auto")
    engine = FixedEngine(made, 0, 3, 64)
    engine.embed = lambda tokens: made.embed(tokens.cuda())
    found = rows(engine)
    assert engine.record and len(engine._forwards) > 2
    monkeypatch.setenv(graphs.FLAG, "eager")
    twin = FixedEngine(made, 0, 3, 64)
    twin.embed = engine.embed
    assert torch.allclose(found, rows(twin), rtol=1e-4, atol=1e-5)

"""Compiled, torch and fixed engines carry rows alike."""

import itertools

import pytest
import torch
from shelf import refused
from toys import random_model, with_biases

from flashspec.models import engine as graphs
from flashspec.models.engine import FixedEngine, KernelEngine, TorchEngine, choice
from flashspec.models.packed import PackedLinear, rounded
from flashspec.models.reader import engine_for

IDS = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(0))
SHAPES = [
    {},
    {"heads": 4, "kv_heads": 4},
    {"heads": 6, "kv_heads": 1, "head_dim": 16},
    {"hidden": 64, "ffn": 24, "head_dim": 24},
    {"family": "qwen2"},
    {"family": "llama", "attention_bias": True, "mlp_bias": True},
    {"family": "opt", "kv_heads": 4},
    {"family": "opt", "kv_heads": 4, "attention_bias": True, "mlp_bias": True},
]


def model(changes, dtype=torch.float32):
    return with_biases(random_model(1, 3, **changes)).to(dtype)


def embedded(engine, ids):
    return engine.model.embed(ids).to(engine.row_dtype)


def rows(engine, *cuts, ids=IDS):
    edges = [0, *cuts, len(ids)]
    return torch.cat([engine.run(embedded(engine, ids[a:b]), a) for a, b in itertools.pairwise(edges)])


def scale(x):
    return float(x.abs().max())


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_the_compiled_engine_equals_its_naive_twin(changes):
    made, wide, spoilt = model(changes), model(changes, torch.float64), model(changes)
    exact = rows(TorchEngine(wide, 0, 3, 64))
    for kind in (KernelEngine, TorchEngine):
        assert scale(rows(kind(made, 0, 3, 64)) - exact) < 1e-5 * scale(exact)
    for name, part in spoilt.blocks[1].named_parameters():  # the control: every vector is seen
        part.mul_(0.9)
        assert part.ndim > 1 or scale(rows(KernelEngine(spoilt, 0, 3, 64)) - exact) > 1e-4 * scale(exact), name
        part.div_(0.9)
    assert type(engine_for(made, 0, 3, 64)) is KernelEngine
    assert type(engine_for(wide, 0, 3, 64)) is TorchEngine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_compiled_rows_do_not_depend_on_how_the_text_was_cut(changes, dtype):
    made = model(changes, dtype)
    whole = rows(KernelEngine(made, 0, 3, 64))
    for cuts in ([1], [7, 8, 9], [20, 28, 39], list(range(1, 40))):
        assert torch.equal(rows(KernelEngine(made, 0, 3, 64), *cuts), whole)


def test_a_long_prompt_is_carried_some_rows_at_a_time():
    made, ids = model({"context": 640}), IDS.repeat(15)
    whole, parts, half = (KernelEngine(made, 0, 3, 640) for _ in range(3))
    wanted = rows(whole, ids=ids)
    assert torch.equal(rows(parts, 100, 300, 450, ids=ids), wanted) and rows(half, ids=ids[:256]).equal(wanted[:256])
    assert len(whole._scratch) == len(half._scratch) > len(parts._scratch) > 0
    assert not torch.equal(rows(KernelEngine(made, 0, 3, 640), ids=ids.flip(0)), wanted)


@pytest.mark.parametrize(("weights", "loss"), [("int8", 0.03), ("int4", 0.5)])
@pytest.mark.parametrize("changes", [
    {"head_dim": 16}, {"hidden": 144, "ffn": 160, "head_dim": 16}, {**SHAPES[-1], "ffn": 64, "head_dim": 16},
], ids=str)  # fmt: skip
def test_rounded_layers_run_as_their_naive_twin_and_near_the_plain_ones(changes, weights, loss):
    torch.manual_seed(0)  # of the biases
    made = random_model(1, 3, **changes)
    small = rounded(made, weights)
    assert type(engine_for(small, 0, 3, 64)) is KernelEngine
    engines = ((KernelEngine, small), (TorchEngine, small), (TorchEngine, made))
    fast, slow, plain = (rows(kind(m, 0, 3, 64)) for kind, m in engines)
    assert float((fast - slow).norm() / slow.norm()) < 1e-3 < float((fast - plain).norm() / plain.norm())
    assert scale(fast - plain) < loss * scale(plain)
    assert torch.equal(rows(KernelEngine(small, 0, 3, 64), 7, 8, 20), fast)


def test_rounding_leaves_the_model_itself_alone_and_refuses_in_words(tmp_path):
    made = model({})
    small = rounded(made, "int8")
    assert small.embed is made.embed and isinstance(small.blocks[0].mlp.down, PackedLinear)
    assert not any(isinstance(m, PackedLinear) for m in made.modules())
    refused("int8 or int4, got 'fp8'", rounded, made, "fp8")
    again, four = rounded(small, "int8"), rounded(small, "int4")
    kinds = [m.blocks[0].mlp.down.weight.kind for m in (again, four, rounded(four, "int8"))]
    assert kinds == ["s8", "u4", "u4"]
    assert torch.equal(again.blocks[0].mlp.down.weight.cells, small.blocks[0].mlp.down.weight.cells)
    refused("integer weights; load it with weights='dense' to save it", small.save, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_survive_a_change_of_threads():
    made = model({})
    engine, one = KernelEngine(made, 0, 3, 64), torch.get_num_threads()
    whole = rows(KernelEngine(made, 0, 3, 64))
    try:
        torch.set_num_threads(2)
        engine.run(embedded(engine, IDS[:1]), 0)
    finally:
        torch.set_num_threads(one)
    assert torch.equal(rows(engine, 2), whole)
    engine.slots[1].keys[:, :, 3].add_(0.01)  # the control: a stale cache is seen
    assert not torch.equal(engine.run(embedded(engine, IDS[30:]), 30), whole[30:])


def test_a_bfloat16_model_is_its_float32_copy():
    narrow, wide = model({}, torch.bfloat16), model({}, torch.bfloat16).float()
    assert torch.equal(*(rows(KernelEngine(made, 0, 3, 64)) for made in (narrow, wide)))
    for layer in wide.layers:
        layer.mlp.up.weight.mul_(300)
    fast, slow = (rows(kind(wide, 0, 3, 64)) for kind in (KernelEngine, TorchEngine))
    assert scale(fast - slow) < 1e-4 * scale(slow)


LONG = torch.randint(0, 61, (60,), generator=torch.Generator().manual_seed(0))
CUTS = [20, 21, 22, 27, 31, 32, 48, 59]


@pytest.mark.parametrize("changes", [{}, {"family": "qwen2"}, SHAPES[-1]], ids=str)
@torch.inference_mode()
def test_fixed_shapes_give_the_rows_of_the_torch_engine(changes, monkeypatch):
    monkeypatch.setattr(graphs, "KEYS", 24)
    made = model(changes, torch.float64)
    whole = rows(TorchEngine(made, 0, 2, 64), *CUTS, ids=LONG)
    assert torch.allclose(rows(FixedEngine(made, 0, 2, 64), *CUTS, ids=LONG), whole, rtol=1e-10, atol=1e-10)
    honest = graphs.FixedSlot
    monkeypatch.setattr(graphs, "FixedSlot", lambda slot, mask: honest(slot, mask.roll(1, 1)))  # the control: one key more
    assert not torch.allclose(rows(FixedEngine(made, 0, 2, 64), *CUTS, ids=LONG), whole, rtol=1e-6, atol=1e-6)


def test_the_flag_decides_and_refuses_nonsense(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for value, answers in {"auto": ("0", "record"), "0": ("0", "0"), "eager": ("eager", "eager")}.items():
        monkeypatch.setenv(graphs.FLAG, value)
        assert (choice(cpu), choice(cuda)) == answers
        assert type(engine_for(model({}, torch.float64), 0, 2, 64)) is (TorchEngine if answers[0] == "0" else FixedEngine)
    monkeypatch.setenv(graphs.FLAG, "yes")
    refused("FLASHSPEC_GRAPHS must be one of auto, 0, eager, got 'yes'", choice, cpu)

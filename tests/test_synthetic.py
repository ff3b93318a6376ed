"""Published shapes with random weights, rounds with scripted acceptance, and the memory that models need."""

from dataclasses import replace

import pytest
import torch
from shelf import refused
from test_awq import SMALL, write_awq
from test_transformer import BASE, randomised
from toys import duo

from flashspec import METHODS, Event, Limits, Transformer, build, decode
from flashspec.decoding.generate import count
from flashspec.decoding.rules import ScriptedAcceptance
from flashspec.decoding.stages import scripted
from flashspec.models import memory
from flashspec.models.memory import Form, needed_bytes, weight_bytes
from flashspec.models.packed import PackedLinear
from flashspec.models.synthetic import SHAPES, shape, synthetic
from flashspec.sampling import Scores

BILLIONS = {
    "SmolLM2-135M": 0.1345,
    "Qwen3-0.6B": 0.596, "Qwen3-1.7B": 1.72, "Qwen3-4B": 4.02, "Qwen3-8B": 8.19, "Qwen3-14B": 14.77, "Qwen3-32B": 32.76,
    "Qwen2.5-0.5B": 0.494, "Qwen2.5-1.5B": 1.54, "Qwen2.5-7B": 7.62, "Qwen2.5-32B": 32.76,
    "Llama-3.2-1B": 1.236, "Llama-3.2-3B": 3.21, "Llama-3-8B": 8.03, "Llama-3-70B": 70.55, "Llama-3.1-8B": 8.03,
    "Llama-3.1-70B": 70.55, "Llama-2-7B": 6.74, "Llama-2-13B": 13.02, "Llama-2-70B": 68.98, "LLaMA-65B": 65.29,
    "Sheared-LLaMA-1.3B": 1.345, "NoFT-Wide-1.3B": 1.334, "NoFT-Wide-796M": 1.274, "NoFT-Wide-543M": 0.869,
    "NoFT-Wide-290M": 0.465,
    "Mistral-7B-v0.1": 7.24, "Mistral-7B-v0.3": 7.25, "OPT-125M": 0.125, "OPT-1.3B": 1.316, "OPT-2.7B": 2.65,
    "OPT-6.7B": 6.66, "OPT-13B": 12.85, "OPT-30B": 29.97, "OPT-66B": 65.72,
}  # fmt: skip
TINY = replace(BASE, hidden=128, ffn=128, heads=4, kv_heads=4, head_dim=32)


@pytest.mark.parametrize("name", BILLIONS)
def test_a_published_shape_has_the_published_number_of_parameters(name):
    config = SHAPES[name]
    ends = config.head_parameters * (1 if config.tied else 2)
    table = (config.context + 2) * config.hidden if config.opt else 0
    assert config.body_parameters + ends + table == pytest.approx(BILLIONS[name] * 1e9, rel=6e-3)
    assert shape(f"{name.upper()}-awq") == config and all(each in BILLIONS or "reference" in each for each in SHAPES)


def test_an_awq_shape_has_int4_layers_of_the_right_variance(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    model = synthetic("tiny-AWQ")
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 4 * TINY.layers
    assert not [name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers.")]
    dense = packed[0](torch.eye(128).bfloat16())
    assert dense.float().std() == pytest.approx(128**-0.5, rel=0.05) and abs(dense.mean()) < 0.02
    logits = [synthetic("tiny-awq", torch.float32, seed)(torch.tensor([[1, 2, 3]])) for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    stored = sum(m.weight.nbytes for m in packed) + model.embed.weight.nbytes
    assert stored == weight_bytes(TINY, Form(torch.bfloat16, 32))


def stats(models, curve, **changes):
    method = replace(METHODS["dense"], **changes)
    stages = scripted(build(method, models, context=128), curve)
    steps = list(decode(stages, [3, 1, 4], Limits(100, finalize=method.finalize)))
    events = [event for step in steps for event in step.events]
    return count(events, 100, len(stages)), events


@pytest.mark.parametrize(("curve", "kept"), [([1.0], 4), ([0.0], 0), ([1.0, 1.0, 0.0], 2)])
def test_scripted_rounds_keep_what_the_curve_says(curve, kept):
    _, events = stats(duo(0, torch.float32), curve)
    assert {e.kept for e in events if e.stage == 1 and e.waiting == 4} == {kept}


def test_scripted_rounds_do_not_depend_on_finalisation_or_on_the_models():
    deferred, eager = (stats(duo(0, torch.float32), [0.6], finalize=kind)[0] for kind in ("deferred", "eager"))
    assert (deferred.rounds, deferred.accepted) == (eager.rounds, eager.accepted) and eager.forwards > deferred.forwards
    assert stats(duo(3, torch.float32), [0.6])[0].accepted == deferred.accepted
    assert stats(duo(0, torch.float32), [0.1])[0].accepted < deferred.accepted
    models = duo(0, torch.float32)
    rule = build(METHODS["dense"], models)[0].rule
    for curve in ([], [1.2], [float("nan")]):
        refused("one probability or more", ScriptedAcceptance, rule, curve)
    refused("verifies nothing", scripted, build(METHODS["baseline"], models), [0.5])
    scripts, scores = ScriptedAcceptance(rule, [0.5]), Scores(None, torch.randn(1, models.target.config.vocab_size))
    assert scripts.draw(scores, 3, 0).token == rule.draw(scores, 3, 0).token == scores.logits.argmax()
    assert not scripts.exact and Event(1, 4, 2, 5).kept == 2


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
    refused("needs about 0.0 GB of cpu memory in bfloat16 and 0.0 GB are free", Transformer.load, tmp_path, weights="dense")
    Transformer.load(tmp_path, weights="int4")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    Transformer.load(tmp_path, weights="dense")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    big = r"Qwen3-32B-AWQ needs about 2\d\.\d GB of cpu memory in 4 bits and 1.0 GB are free"
    refused(big, synthetic, "Qwen3-32B-AWQ")
    refused("LLaMA-65B needs about 130.6 GB of cpu memory in bfloat16", synthetic, "LLaMA-65B")


def test_memory_that_torch_keeps_for_the_next_model_is_free(monkeypatch):
    for name, value in {"mem_get_info": (30, 100), "memory_reserved": 60, "memory_allocated": 20}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 70 and (memory.free_bytes(torch.device("cpu")) or 2**30) > 2**20

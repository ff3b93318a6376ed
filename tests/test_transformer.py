"""Our transformer computes what transformers computes, for every option a config.json can set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashspec.model.config import ModelConfig, RopeScaling, to_hf
from flashspec.model.transformer import Transformer

BASE = ModelConfig(
    family="qwen3", vocab_size=97, hidden=48, ffn=80, layers=2, heads=4, kv_heads=2, head_dim=12, context=256, eos=(3,)
)
LLAMA3 = RopeScaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
CASES = {
    "qwen3-gqa": BASE,
    "qwen3-mha": replace(BASE, kv_heads=4, vocab_size=101),
    "qwen3-mqa": replace(BASE, kv_heads=1, tied=False),
    "qwen3-wide-heads": replace(BASE, head_dim=32, hidden=40),
    "qwen3-theta-bias": replace(BASE, rope_theta=1e6, attention_bias=True),
    "qwen3-linear": replace(BASE, rope=RopeScaling("linear", factor=4.0), tied=False),
    "qwen3-llama3": replace(BASE, rope=LLAMA3, rope_theta=5e5),
    "qwen3-one-layer-eps": replace(BASE, layers=1, norm_eps=1e-3, vocab_size=33),
    "llama-gqa": replace(BASE, family="llama", tied=False, vocab_size=131),
    "llama-mha-tied": replace(BASE, family="llama", kv_heads=4),
    "llama-mqa-narrow-heads": replace(BASE, family="llama", kv_heads=1, head_dim=8, layers=3),
    "llama-biases": replace(BASE, family="llama", attention_bias=True, mlp_bias=True),
    "llama-linear": replace(BASE, family="llama", rope=RopeScaling("linear", factor=2.5)),
    "llama-llama3": replace(BASE, family="llama", rope=LLAMA3, heads=6, kv_heads=3, tied=False, eos=(3, 5)),
}
LENGTHS = (1, 2, 90)


def randomised(config: ModelConfig, seed: int = 0) -> Transformer:
    dice = torch.Generator().manual_seed(seed)
    model = Transformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            centre = 1.0 if weight.ndim == 1 and weight.mean() == 1 else 0.0
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=dice))
    return model


def prompt(config: ModelConfig, length: int) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def distance(ours: Transformer, theirs: torch.nn.Module) -> float:
    """Largest difference of logits relative to the largest logit, over one-token and long prompts."""
    worst = 0.0
    for length in LENGTHS:
        ids = prompt(ours.config, length)
        wanted = theirs(ids).logits
        worst = max(worst, ((ours(ids) - wanted).abs().max() / wanted.abs().max()).item())
    return worst


def as_transformers(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_we_save_and_gives_our_logits(name: str, tmp_path: Path) -> None:
    model = randomised(CASES[name])
    model.save(tmp_path, dtype="float32")
    assert distance(model, as_transformers(tmp_path)) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_we_load_what_transformers_saves_and_give_its_logits(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    table = to_hf(CASES[name], "float32")
    config = transformers.AutoConfig.for_model(table.pop("model_type"), **table)
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Transformer.load(tmp_path, dtype="float32")
    assert replace(ours.config, bos=None) == replace(CASES[name], bos=None)
    assert distance(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [{"rope_theta": 2e4}, {"rope": LLAMA3}, {"rope": RopeScaling("linear", factor=2.0)}, {"norm_eps": 1e-2}],
    ids=["theta", "llama3", "linear", "eps"],
)
def test_a_wrong_configuration_is_caught(wrong: dict, tmp_path: Path) -> None:
    model = randomised(BASE)
    model.save(tmp_path, dtype="float32")
    other = Transformer(replace(BASE, **wrong)).eval()
    other.load_state_dict(model.state_dict())
    assert distance(other, as_transformers(tmp_path)) > 1e-3


def test_sharded_and_whole_folders_hold_the_same_model(tmp_path: Path) -> None:
    model = randomised(CASES["llama-gqa"])
    model.save(tmp_path / "whole", dtype="float32")
    model.save(tmp_path / "sharded", dtype="float32", shard_bytes=20_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert all(path.stat().st_size < 48_000 for path in (tmp_path / "sharded").glob("*.safetensors"))
    ids = prompt(model.config, 7)
    with torch.inference_mode():
        logits = [Transformer.load(tmp_path / kind)(ids) for kind in ("whole", "sharded")]
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], model(ids))
    assert distance(model, as_transformers(tmp_path / "sharded")) < 1e-4


def test_bfloat16_survives_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    model = randomised(BASE).bfloat16()
    model.save(tmp_path)
    again = Transformer.load(tmp_path)
    assert again.norm.weight.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))

"""Shape-faithful models: true shapes, random weights. They tell what a step costs and nothing about what it says."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashspec.model.config import ModelConfig
from flashspec.model.transformer import Rope, Transformer

LABEL = "shape-faithful random weights: costs only"
BLOCK = 1 << 20

SHAPES = {
    "reference-target": ModelConfig(
        family="qwen3", vocab_size=16384, hidden=384, ffn=1024, layers=16, heads=6, kv_heads=2, head_dim=64, context=1024
    ),
    "qwen3-0.6b": ModelConfig(
        family="qwen3", vocab_size=151936, hidden=1024, ffn=3072, layers=28, heads=16, kv_heads=8, head_dim=128,
        context=2048, rope_theta=1e6,
    ),
    "qwen3-32b": ModelConfig(
        family="qwen3", vocab_size=151936, hidden=5120, ffn=25600, layers=64, heads=64, kv_heads=8, head_dim=128,
        context=2048, rope_theta=1e6, tied=False,
    ),
    "llama-3.2-1b": ModelConfig(
        family="llama", vocab_size=128256, hidden=2048, ffn=8192, layers=16, heads=32, kv_heads=8, head_dim=64,
        context=2048, rope_theta=5e5, norm_eps=1e-5,
    ),
}  # fmt: skip
SHAPES["reference-draft"] = replace(SHAPES["reference-target"], layers=2)
SHAPES["reference-shallow"] = replace(SHAPES["reference-target"], layers=1)


def shape(name: str | ModelConfig, depth: int | None = None) -> ModelConfig:
    """A published shape by name, or the given one, optionally cut or stretched to `depth` layers."""
    if isinstance(name, str) and name not in SHAPES:
        raise ValueError(f"shape {name!r} is not known; known: {', '.join(SHAPES)}")
    config = SHAPES[name] if isinstance(name, str) else name
    if depth is None:
        return config
    if depth < 1:
        raise ValueError(f"depth must be at least 1 layer, got {depth}")
    return replace(config, layers=depth)


def synthetic(
    name: str | ModelConfig, dtype: torch.dtype = torch.bfloat16, seed: int = 0, depth: int | None = None
) -> Transformer:
    """A model of a given shape with seeded random weights (see LABEL), its memory written once and filled in blocks."""
    config = shape(name, depth)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    model.rope = Rope(config)
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for shift, weight in enumerate(model.parameters()):
        fill(weight, noise, 31 * shift)
    return model


def random_rows(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A seeded random matrix [rows, width]; large ones repeat one block of noise, which costs the same to read."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return fill(torch.empty(rows, width, dtype=dtype), noise)


@torch.no_grad()
def fill(weight: Tensor, noise: Tensor, shift: int = 0) -> Tensor:
    """Norm weights become 1, matrices noise of variance 1 / fan-in; `shift` and the block's number move where noise starts."""
    if weight.ndim == 1:
        return weight.fill_(1.0)
    flat, half = weight.view(-1), len(noise) // 2
    for turn, part in enumerate(flat.split(half)):
        begin = (shift + turn) * 7919 % half
        torch.mul(noise[begin : begin + len(part)], weight.shape[1] ** -0.5, out=part)
    return weight

"""Models with true shapes and random weights: they show what a step costs and nothing about quality."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from flashspec.kernels.integers import CELL, Shelf
from flashspec.models.config import ModelConfig, Part
from flashspec.models.memory import Form, refuse_too_large
from flashspec.models.packed import Awq, layer
from flashspec.models.transformer import Transformer

FACTS = Path(__file__).parents[1] / "data" / "shapes.json"
BLOCK = 1 << 20
CONTEXT = 2048
GROUP = 128
STEP = 8


SHAPES = {  # published ones by name, their contexts cut, so that no step pays for room it does not use
    name: replace(config, context=min(config.context, CONTEXT))
    for name, config in msgspec.json.decode(FACTS.read_bytes(), type=dict[str, ModelConfig]).items()
}


def shape(name: str | ModelConfig, depth: int | None = None) -> ModelConfig:
    """A published shape by name (any case, with or without "-AWQ"), or the given one, perhaps at another depth."""
    if isinstance(name, str):
        known = {known.lower(): config for known, config in SHAPES.items()}
        plain = name.lower().removesuffix("-awq")
        if plain not in known:
            raise ValueError(f"shape {name!r} is not known; known: {', '.join(SHAPES)}, each also with -AWQ behind it")
        name = known[plain]
    return name if depth is None else replace(name, layers=depth)


def is_awq(name: str | ModelConfig) -> bool:
    """Whether a shape's name asks for 4-bit layers."""
    return isinstance(name, str) and name.lower().endswith("-awq")


def reshaped(config: ModelConfig, layers: int) -> ModelConfig:
    """A shape with `layers` layers and the same number of body parameters, up to rounding.

    Heads and hidden width grow with the root of the ratio of depths, feed-forward channels make up the rest. Raises
    ValueError for less than one layer, or where nothing is left for channels.
    """
    flat = replace(config, layers=layers)
    group, scale = config.heads // config.kv_heads, (config.layers / layers) ** 0.5
    kv_heads = max(1, round(config.kv_heads * scale))
    hidden = config.hidden * kv_heads * group // config.heads
    wide = replace(flat, hidden=hidden, heads=kv_heads * group, kv_heads=kv_heads, ffn=STEP)
    channels = (config.body_parameters - wide.body_parameters) / (layers * hidden * (2 if config.opt else 3))
    ffn = STEP + STEP * round(channels / STEP)
    if ffn < STEP:
        raise ValueError(f"at {layers} layers attention alone has more parameters than the body had; take fewer layers")
    return replace(wide, ffn=ffn)


def synthetic(
    name: str | ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    depth: int | None = None,
    device: str | torch.device = "cpu",
) -> Transformer:
    """A model of a given shape with seeded random weights: int4 layers for a name in -AWQ, else in `dtype`.

    Raises ValueError for an unknown shape, and where the weights do not fit the free memory.
    """
    config, place = shape(name, depth), torch.device(device)
    group = GROUP if is_awq(name) else 0
    form = Form(dtype, min(group, CELL) if place.type == "cpu" else group)
    refuse_too_large(str(name) if isinstance(name, str) else config.family, config, form, place)
    dice, shelf, made = torch.Generator(place).manual_seed(seed), Shelf(), count()
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype).to(place)

    def module(path: str, part: Part) -> nn.Module | dict[str, Tensor]:
        packed = bool(group and part.columns and "." in path)
        dense = {leaf: shelf.zeros(part.shape(leaf), dtype, place) for leaf in part.leaves[packed:]}
        if packed:
            return layer(random_int4(part.shape("weight"), dice), dense.get("bias"), shelf)
        for leaf, tensor in dense.items():
            shift = 31 * next(made)
            if leaf == "weight" and part.columns:
                fill(tensor, noise, shift)
            elif leaf == "weight":
                tensor.fill_(1.0)
        return dense

    return Transformer.filled(config, module, place).requires_grad_(False)


def random_int4(shape: tuple[int, ...], dice: torch.Generator) -> Awq:
    """A 4-bit weight [out, in] of random integers around zero point 8, with the variance of 1 / fan-in."""
    (rows, columns), place = shape, dice.device
    whole = torch.randint(-(2**31), 2**31, (columns, rows // 8), generator=dice, device=place, dtype=torch.int64).int()
    scales = torch.full((columns // GROUP, rows), columns**-0.5 / 21.25**0.5, dtype=torch.float16, device=place)
    zeros = torch.full((columns // GROUP, rows // 8), 0x88888888 - 2**32, dtype=torch.int32, device=place)
    return Awq(whole, zeros, scales)


def random_rows(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A seeded random matrix [rows, width]; large ones repeat one block of noise."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return fill(Shelf().zeros((rows, width), dtype), noise)


def fill(weight: Tensor, noise: Tensor, shift: int = 0) -> Tensor:
    """Fill a matrix with noise of variance 1 / fan-in; `shift` moves where the noise starts."""
    flat, half = weight.view(-1), len(noise) // 2
    for turn, part in enumerate(flat.split(half)):
        begin = (shift + turn) * 7919 % half
        torch.mul(noise[begin : begin + len(part)], weight.shape[1] ** -0.5, out=part)
    return weight

"""Shape-faithful models: true shapes, random weights. They tell what a step costs and nothing about what it says."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashspec.kernels.pages import Shelf
from flashspec.models.awq import Int4Linear, Quantised
from flashspec.models.config import ModelConfig, RopeScaling
from flashspec.models.memory import Form, refuse_too_large
from flashspec.models.transformer import RMSNorm, Rope, Transformer

LABEL = "shape-faithful random weights: costs only"
FACTS = Path(__file__).parents[1] / "data" / "shapes.json"
BLOCK = 1 << 20
CONTEXT = 2048
GROUP = 128


@functools.cache
def _facts() -> dict[str, ModelConfig]:
    """The published shapes by lower-case name, their contexts cut to CONTEXT tokens."""
    table = json.loads(FACTS.read_text(encoding="utf-8"))
    return {name.lower(): _config(raw) for name, raw in table.items()}


def _config(raw: dict) -> ModelConfig:
    whole = {"rope": RopeScaling(**raw.get("rope", {})), "eos": tuple(raw.get("eos", ()))}
    return ModelConfig(**{**raw, **whole, "context": min(raw["context"], CONTEXT)})


class Shapes(Mapping[str, ModelConfig]):
    """Published configurations (shapes.json) by name, upper and lower case alike."""

    def __getitem__(self, name: str) -> ModelConfig:
        return _facts()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(FACTS.read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(_facts())


SHAPES = Shapes()


def shape(name: str | ModelConfig, depth: int | None = None) -> ModelConfig:
    """A published shape by name, with or without "-AWQ", or the given one, optionally cut or stretched to `depth` layers.

    Contexts are at most CONTEXT tokens, so that no step pays for room it does not use; `dataclasses.replace` gives more.
    """
    plain = _plain(name) if isinstance(name, str) else name
    if isinstance(plain, str) and plain not in SHAPES:
        raise ValueError(f"shape {name!r} is not known; known: {', '.join(SHAPES)}, each also with -AWQ behind it")
    config = SHAPES[plain] if isinstance(plain, str) else plain
    if depth is None:
        return config
    if depth < 1:
        raise ValueError(f"depth must be at least 1 layer, got {depth}")
    return replace(config, layers=depth)


def _plain(name: str) -> str:
    return name[:-4] if is_awq(name) else name


def is_awq(name: str | ModelConfig) -> bool:
    """Whether a shape's name asks for 4-bit layers."""
    return isinstance(name, str) and name.lower().endswith("-awq")


def synthetic(
    name: str | ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    depth: int | None = None,
    device: str | torch.device = "cpu",
) -> Transformer:
    """A model of a given shape with seeded random weights (see LABEL), made on the device in the form they are used in.

    "Qwen3-32B-AWQ" has int4 layers in groups of 128, as its checkpoint; every other name is dense in `dtype`. Raises
    ValueError for an unknown shape, and with an estimate when the weights do not fit the free memory.
    """
    config, place = shape(name, depth), torch.device(device)
    group = GROUP if is_awq(name) else 0
    refuse_too_large(str(name) if isinstance(name, str) else config.family, config, Form(dtype, group), place)
    with torch.device("meta"):
        model = Transformer(config).to(dtype).eval().requires_grad_(False)
    if group:
        _pack_layers(model, dtype, seed, place)
    _materialise(model, place)
    model.rope = Rope(config).to(place)
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype).to(place)
    for shift, (owner, leaf, weight) in enumerate(_weights(model)):
        if weight.ndim == 1:
            weight.fill_(1.0 if leaf == "weight" and isinstance(owner, (RMSNorm, nn.LayerNorm)) else 0.0)
        else:
            fill(weight, noise, 31 * shift)
    return model


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter with the module and the name it has there, a shared one once, in torch's order."""
    for name, weight in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        yield model.get_submodule(owner), leaf, weight


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Real memory for every parameter that is still a promise; packed layers are left alone."""
    shelf = Shelf()
    for owner, leaf, weight in list(_weights(model)):
        if weight.is_meta:
            made = shelf.zeros(weight.shape, weight.dtype, device)
            setattr(owner, leaf, nn.Parameter(made, requires_grad=False))


class RandomInt4(NamedTuple):
    """A 4-bit weight of random integers around zero point 8, drawn when its rows are asked for."""

    shape: tuple[int, int]
    group_size: int
    dice: torch.Generator

    @property
    def device(self) -> torch.device:
        """Where the rows are drawn."""
        return self.dice.device

    def rows(self, start: int, stop: int) -> Quantised:
        """Rows start..stop-1; scales give the dense weight a variance of 1 / fan-in."""
        inputs, outputs, place = self.shape[1], stop - start, self.device
        whole = torch.randint(0, 16, (inputs, outputs), dtype=torch.uint8, generator=self.dice, device=place)
        scale = inputs**-0.5 / 21.25**0.5
        scales = torch.full((inputs // self.group_size, outputs), scale, dtype=torch.float16, device=place)
        return Quantised(whole, torch.full_like(scales, 8, dtype=torch.uint8), scales)


def _pack_layers(model: Transformer, dtype: torch.dtype, seed: int, device: torch.device) -> None:
    """Put random int4 weights in the place of every matrix of the layers."""
    dice = torch.Generator(device).manual_seed(seed)
    linears = [(name, m) for name, m in model.named_modules() if name.startswith("layers.") and isinstance(m, nn.Linear)]
    for name, linear in linears:
        parent, leaf = name.rsplit(".", 1)
        bias = None if linear.bias is None else torch.zeros(linear.out_features, dtype=dtype, device=device)
        packed = Int4Linear(RandomInt4((linear.out_features, linear.in_features), GROUP, dice), bias, dtype)
        setattr(model.get_submodule(parent), leaf, packed)


def random_rows(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A seeded random matrix [rows, width]; large ones repeat one block of noise, which costs the same to read."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return fill(Shelf().zeros((rows, width), dtype), noise)


@torch.no_grad()
def fill(weight: Tensor, noise: Tensor, shift: int = 0) -> Tensor:
    """A matrix becomes noise of variance 1 / fan-in; `shift` and the block's number move where noise starts."""
    flat, half = weight.view(-1), len(noise) // 2
    for turn, part in enumerate(flat.split(half)):
        begin = (shift + turn) * 7919 % half
        torch.mul(noise[begin : begin + len(part)], weight.shape[1] ** -0.5, out=part)
    return weight

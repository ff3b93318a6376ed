"""Layers whose matrices are rounded to 8 or 4 bits: for drafts, whose every error verification mends."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.pages import Shelf
from flashspec.models.transformer import Transformer

BITS = {"int8": 8, "int4": 4}


class PackedLinear(nn.Module):
    """A linear layer on packed weights, whose rows follow one another; the bias stays as it is."""

    def __init__(self, parts: Sequence[kernels.Packed], bias: Tensor | None = None) -> None:
        super().__init__()
        self.parts, self.bias = tuple(parts), bias

    @property
    def weight(self) -> kernels.Packed:
        """The packed weight of a layer that has one part."""
        (whole,) = self.parts
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] times the weight [N, K] transposed: [..., N] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.cat([kernels.packed_linear(rows, part) for part in self.parts], 1).view(*x.shape[:-1], -1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


class PackedEmbedding(nn.Module):
    """Embeddings whose table is packed; perhaps the vocabulary weight too."""

    def __init__(self, weight: kernels.Packed) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., hidden] of ids [...] in float32."""
        return self.weight.rows_of(ids)


def rounded(model: Transformer, weights: str) -> Transformer:
    """A model with the matrices of all layers in "int8" or "int4"; embedding, norms and head are the given model's own.

    Raises ValueError for another format, for a model that is not on the CPU, and for layers that are quantised already.
    """
    if weights not in BITS:
        raise ValueError(f"layers can be rounded to int8 or int4, got {weights!r}")
    if model.device.type != "cpu":
        where = f"this model is on {model.device}; name the draft without :{weights}"
        raise ValueError(f"layers are rounded for the CPU kernels, and {where}")
    twin, shelf = model.with_layers(copy.deepcopy(model.layers)), Shelf()
    with torch.no_grad():
        for layer in twin.blocks:
            for part in (layer.attention, layer.mlp):
                _round(part, BITS[weights], shelf)
    return twin


def _round(part: nn.Module, bits: int, shelf: Shelf) -> None:
    for name, child in part.named_children():
        if isinstance(child, PackedLinear) or hasattr(child, "in_features"):
            if not isinstance(child, nn.Linear):
                raise ValueError(f"layers that are quantised cannot be rounded to {bits} bits; name the draft without its format")
            bias = None if child.bias is None else child.bias.detach()
            setattr(part, name, PackedLinear([kernels.pack(child.weight.detach(), bits, shelf)], bias))

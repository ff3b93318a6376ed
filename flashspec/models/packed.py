"""Layers with packed weights: the integers that the kernels read instead of parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from flashspec.kernels.integers import BITS, Packed, Shelf, pack, packed_linear

ROUNDED = {"int8": 8, "int4": 4}
Model = TypeVar("Model", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer on one or more packed weights, whose rows follow each other; the bias stays as it is."""

    def __init__(self, packed: Sequence[Packed], bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed: tuple[Packed, ...] = tuple(packed)
        self.bias = bias
        for number, part in enumerate(packed):
            self.register_buffer(f"cells_{number}", part.cells)

    def cut(self, rows: int) -> None:
        """Drop all but the first rows of a layer with one weight."""
        self.packed = (self.weight[:rows],)
        self.cells_0 = self.weight.cells

    @property
    def weight(self) -> Packed:
        """The packed weight of a layer with one weight."""
        (whole,) = self.packed
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] times the weights [N, K] transposed: [..., N] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.cat([packed_linear(rows, part) for part in self.packed], 1).view(*x.shape[:-1], -1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


class PackedEmbedding(PackedLinear):
    """Embeddings with a packed table, which may also be the vocabulary weight."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., hidden] of ids [...] in float32."""
        return self.weight.rows_of(ids)


def rounded(given: Model, weights: str) -> Model:
    """A transformer with the matrices of all layers in "int8" or "int4"; the rest is the given model's own.

    Matrices that already have fewer bits stay as they are. Raises ValueError for another format, for a model that is not on
    the CPU, and for layers of another library.
    """
    model: Any = given
    if weights not in ROUNDED:
        raise ValueError(f"layers can be rounded to int8 or int4, got {weights!r}")
    if model.device.type != "cpu":
        where = f"this model is on {model.device}; name the draft without :{weights}"
        raise ValueError(f"layers are rounded for the CPU kernels, and {where}")
    twin, shelf = model.with_layers(copy.deepcopy(model.layers)), Shelf()
    for part in [part for layer in twin.blocks for part in (layer.attention, layer.mlp)]:
        for name, child in part.named_children():
            if isinstance(child, nn.Linear | PackedLinear):
                matrices = child.packed if isinstance(child, PackedLinear) else [child.weight]
                packed = [_rounded(matrix, ROUNDED[weights], shelf) for matrix in matrices]
                setattr(part, name, PackedLinear(packed, None if child.bias is None else child.bias.detach()))
            elif hasattr(child, "in_features"):
                raise ValueError(f"layers that are quantised cannot be rounded to {weights}; name the draft without its format")
    return cast(Model, twin)


def _rounded(matrix: Tensor | Packed, bits: int, shelf: Shelf) -> Packed:
    if not isinstance(matrix, Packed):
        return pack(matrix, bits, shelf)
    return matrix if BITS[matrix.kind] <= bits else pack(matrix.dequantised(), bits, shelf)

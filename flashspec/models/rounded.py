"""Layers whose matrices are rounded to 8 or 4 bits: for drafts, whose every error verification mends."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.integers import BITS as WIDTHS
from flashspec.kernels.pages import Shelf
from flashspec.models.packed import PackedLinear
from flashspec.models.transformer import Transformer

BITS = {"int8": 8, "int4": 4}


def rounded(model: Transformer, weights: str) -> Transformer:
    """A model with the matrices of all layers in "int8" or "int4"; embedding, norms and head are the given model's own.

    Matrices in fewer bits already, of a GGUF file say, stay as they are. Raises ValueError for another format, for a model that
    is not on the CPU, and for layers of another library.
    """
    if weights not in BITS:
        raise ValueError(f"layers can be rounded to int8 or int4, got {weights!r}")
    if model.device.type != "cpu":
        where = f"this model is on {model.device}; name the draft without :{weights}"
        raise ValueError(f"layers are rounded for the CPU kernels, and {where}")
    twin, shelf = model.with_layers(copy.deepcopy(model.layers)), Shelf()
    for part in [part for layer in twin.blocks for part in (layer.attention, layer.mlp)]:
        for name, child in part.named_children():
            if isinstance(child, nn.Linear | PackedLinear):
                matrices = child.packed if isinstance(child, PackedLinear) else [child.weight]
                packed = [_rounded(matrix, BITS[weights], shelf) for matrix in matrices]
                setattr(part, name, PackedLinear(packed, None if child.bias is None else child.bias.detach()))
            elif hasattr(child, "in_features"):
                raise ValueError(f"layers that are quantised cannot be rounded to {weights}; name the draft without its format")
    return twin


def _rounded(matrix: Tensor | kernels.Packed, bits: int, shelf: Shelf) -> kernels.Packed:
    if not isinstance(matrix, kernels.Packed):
        return kernels.pack(matrix, bits, shelf)
    return matrix if WIDTHS[matrix.kind] <= bits else kernels.pack(matrix.dequantised(), bits, shelf)

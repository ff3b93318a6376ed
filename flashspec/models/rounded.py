"""Layers whose matrices are rounded to 8 or 4 bits: for drafts, whose every error verification mends."""

from __future__ import annotations

import copy

from torch import nn

from flashspec import kernels
from flashspec.kernels.pages import Shelf
from flashspec.models.packed import PackedLinear
from flashspec.models.transformer import Transformer

BITS = {"int8": 8, "int4": 4}


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
    for part in [part for layer in twin.blocks for part in (layer.attention, layer.mlp)]:
        for name, child in part.named_children():
            if isinstance(child, nn.Linear):
                bias = None if child.bias is None else child.bias.detach()
                setattr(part, name, PackedLinear([kernels.pack(child.weight, BITS[weights], shelf)], bias))
            elif isinstance(child, PackedLinear) or hasattr(child, "in_features"):
                raise ValueError(f"layers that are quantised cannot be rounded to {weights}; name the draft without its format")
    return twin

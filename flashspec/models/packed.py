"""Layers whose weights are packed: the integers that the kernels read, instead of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashspec import kernels


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

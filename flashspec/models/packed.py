"""Layers whose weights are packed: the integers that the kernels read, instead of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashspec.kernels.integers import Packed, packed_linear


class PackedLinear(nn.Module):
    """A linear layer on packed weights, whose rows follow one another; the bias stays as it is."""

    def __init__(self, packed: Sequence[Packed], bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed: tuple[Packed, ...] = tuple(packed)
        self.bias = bias
        for number, part in enumerate(packed):
            self.register_buffer(f"cells_{number}", part.cells)

    def cut(self, rows: int) -> None:
        """Forget all but the first rows of a layer that has one weight."""
        self.packed = (self.weight[:rows],)
        self.cells_0 = self.weight.cells

    @property
    def weight(self) -> Packed:
        """The packed weight of a layer that has one."""
        (whole,) = self.packed
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] times the weights [N, K] transposed: [..., N] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.cat([packed_linear(rows, part) for part in self.packed], 1).view(*x.shape[:-1], -1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


class PackedEmbedding(PackedLinear):
    """Embeddings whose table is packed; perhaps the vocabulary weight too."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., hidden] of ids [...] in float32."""
        return self.weight.rows_of(ids)

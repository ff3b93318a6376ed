"""Vocabulary weights as 8- or 4-bit integers: packed once, multiplied as they are; activations stay float32.

Rounding is to nearest and symmetric: the entry of largest magnitude in a group becomes the lowest integer, so that all
levels are used. A product's row never depends on how many rows are computed with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.kernels.build import call, library
from flashspec.kernels.pages import Shelf

GROUPS = {8: None, 4: 128}  # columns that share a scale, None for the whole row
KINDS = {8: 2, 4: 3}  # what the compiled kernels call them
STEP = {8: 8, 4: 16}  # columns the compiled kernel takes at once


@dataclass(frozen=True)
class Packed:
    """A weight [N, K] in integers: `values` [N, K * bits / 8] int8, `scales` [N, groups] float32.

    Four-bit columns come in pairs, c and c + 8 of every sixteen in the low and high half of one byte. `depth` is K as it
    was given; the columns behind it, up to the next multiple of 8 or 16, are zeros.
    """

    values: Tensor
    scales: Tensor
    bits: int
    group: int
    depth: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight that was packed."""
        return self.values.shape[0], self.depth

    @property
    def padded(self) -> int:
        """Columns as stored."""
        return self.values.shape[1] * 8 // self.bits

    @property
    def nbytes(self) -> int:
        """Bytes a product reads: integers and scales."""
        return self.values.nbytes + self.scales.nbytes

    def dequantised(self) -> Tensor:
        """The weight [N, K] in float32 that the integers mean."""
        wide = _unpacked(self.values) if self.bits == 4 else self.values.float()
        scales = self.scales.repeat_interleave(self.group, 1)[:, : self.padded]
        return (wide * scales)[:, : self.depth]


def pack(weight: Tensor, bits: int, shelf: Shelf | None = None) -> Packed:
    """Round weight [N, K] to integers of 8 bits with a scale a row, or of 4 bits with a scale for 128 columns; on the shelf."""
    if bits not in GROUPS:
        raise ValueError(f"a packed weight has 8 or 4 bits, got {bits}")
    depth = weight.shape[1]
    wide = F.pad(weight.detach().float(), (0, -depth % STEP[bits]))
    group = GROUPS[bits] or wide.shape[1]
    groups = F.pad(wide, (0, -wide.shape[1] % group)).view(len(wide), -1, group)
    scales = _scales(groups, bits)
    lowest = -(2 ** (bits - 1))
    levels = (groups / scales[:, :, None]).round_().clamp_(lowest, -lowest - 1).to(torch.int8)
    levels = levels.flatten(1)[:, : wide.shape[1]]
    values, shelf = _nibbles(levels) if bits == 4 else levels, shelf or Shelf()
    return Packed(shelf.moved(values), shelf.moved(scales), bits, group, depth)


def _scales(groups: Tensor, bits: int) -> Tensor:
    """What the lowest integer means, over that integer: float32 [N, groups], 1 where a group is all zeros."""
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))[:, :, 0]
    return torch.where(extreme == 0, 1.0, extreme / -(2 ** (bits - 1)))


def _nibbles(levels: Tensor) -> Tensor:
    pairs = levels.view(len(levels), -1, 2, 8)
    low, high = pairs[:, :, 0] & 15, pairs[:, :, 1] << 4
    return (low | high).flatten(1).contiguous()


def _unpacked(values: Tensor) -> Tensor:
    bytes_ = values.int().view(len(values), -1, 1, 8)
    halves = torch.cat(((bytes_ << 28) >> 28, bytes_ >> 4), 2)
    return halves.flatten(1).float()


def packed_linear(x: Tensor, weight: Packed) -> Tensor:
    """x [n, K] times the packed weight [N, K] transposed: [n, N] float32; K must be the weight's."""
    if x.device.type != "cpu" or weight.values.device.type != "cpu" or library() is None:
        return F.linear(x.float(), weight.dequantised())
    x = F.pad(x.float(), (0, weight.padded - weight.depth)).contiguous()
    (rows, depth), outputs = x.shape, len(weight.values)
    out = torch.empty(rows, outputs)
    call("fs_linear", x, rows, weight.values, KINDS[weight.bits], weight.scales, weight.group, outputs, depth, out)
    return out

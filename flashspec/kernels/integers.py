"""Memory for weights on huge pages, and weights of 4, 6 or 8 bits in panels of sixteen rows, multiplied as integers.

A row of a product has the same bits with every instruction set and any number of rows (integers.h).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.kernels.build import call, library

PANEL, CELL, HALF = 16, 32, 16  # rows of a panel; columns of a cell and of its half
BITS = {"u4": 4, "s6": 6, "s8": 8}
KINDS = {"u4": 2, "s6": 3, "s8": 4}  # what the compiled kernels call them
CENTRE = {"s6": 32, "s8": 128}
PAGE = 1 << 21  # bytes of a huge page
BLOCK = 1 << 26  # bytes asked for at once; what is never written takes no memory
ALIGNMENT = 64  # a cache line


class Shelf:
    """Room for tensors on the CPU, in order of request, on huge pages where the system has them (madvise(2)).

    A block is freed with its last tensor: share a shelf only between tensors that live and die together.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._next, self._end = 0, 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Contiguous zeros [*shape] on the shelf; an ordinary tensor off the CPU and without huge pages."""
        size = prod(shape) * dtype.itemsize
        if torch.device(device).type != "cpu" or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(tuple(shape), dtype=dtype, device=device)
        start = -(-self._next // ALIGNMENT) * ALIGNMENT
        if self._block is None or start + size > self._end:  # another block, from its first huge page on
            room = max(BLOCK, -(-size // PAGE) * PAGE)
            block = mmap.mmap(-1, room + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # EINVAL of a kernel built without huge pages
                block.madvise(mmap.MADV_HUGEPAGE)
            start = -torch.frombuffer(block, dtype=torch.uint8, count=1).data_ptr() % PAGE
            self._block, self._end = block, start + room
        self._next = start + size
        return torch.frombuffer(self._block, dtype=dtype, count=prod(shape), offset=start).view(tuple(shape))

    def moved(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a tensor on the shelf; the tensor itself if it is on another device."""
        if tensor.device.type != "cpu":
            return tensor
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor)


@dataclass(frozen=True)
class Packed:
    """A weight [rows, depth] of one kind: "u4" is 4-bit codes with a scale and a minimum per 32 columns, "s6" and "s8" are
    centred 6- and 8-bit codes with a scale per 16 columns; scales are half precision.

    `cells` [panels, depth / 32, bytes] uint8 holds sixteen rows by 32 columns per cell; missing rows and columns are zeros.
    """

    cells: Tensor
    kind: str
    rows: int
    depth: int
    dtype: ClassVar[torch.dtype] = torch.float32  # of the weight's rows and products

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return self.rows, self.depth

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.cells.nbytes

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.cells.device

    def rows_of(self, ids: Tensor) -> Tensor:
        """The weight's rows [..., depth] of ids [...], in float32."""
        flat = ids.flatten()
        panels = Packed(self.cells[flat // PANEL], self.kind, len(flat) * PANEL, self.depth).dequantised()
        return panels.view(len(flat), PANEL, self.depth)[torch.arange(len(flat)), flat % PANEL].view(*ids.shape, self.depth)

    def dequantised(self) -> Tensor:
        """The weight [rows, depth] in float32 that the codes encode."""
        codes, first, second = unpacked(self)
        codes = codes.float().unflatten(1, (-1, CELL))
        if self.kind == "u4":
            wide = first[:, :, None] * codes - second[:, :, None]
        else:
            scales = torch.stack((first, second), 2).repeat_interleave(HALF, 2)
            wide = scales * (codes - CENTRE[self.kind])
        return wide.flatten(1)[: self.rows, : self.depth]

    def taken(self, ids: Tensor) -> Packed:
        """The rows of ids [m] in the same codes; ValueError unless m is a multiple of sixteen."""
        if len(ids) % PANEL:
            raise ValueError(f"rows are taken by panels of {PANEL}, a multiple of {PANEL} ids, got {len(ids)}")
        if library() is None:
            codes, first, second = (part[ids] for part in unpacked(self))
            return packed(codes[:, : self.depth], first, second, self.kind)
        out = room(len(ids), self.depth, self.kind, Shelf())
        call("fs_take", self.cells, KINDS[self.kind], self.depth, ids.contiguous(), len(ids), out)
        return Packed(out, self.kind, len(ids), self.depth)

    def __getitem__(self, rows: slice) -> Packed:
        """Rows of the weight, starting at a multiple of sixteen, without a copy."""
        start, stop, _ = rows.indices(self.rows)
        if start % PANEL:
            raise ValueError(f"a packed weight is cut at multiples of {PANEL} rows, got {start}")
        return Packed(self.cells[start // PANEL : -(-stop // PANEL)], self.kind, stop - start, self.depth)


def room(rows: int, depth: int, kind: str, shelf: Shelf) -> Tensor:
    """Zero cells for a weight [rows, depth] of a kind, on the shelf."""
    return shelf.zeros((-(-rows // PANEL), -(-depth // CELL), CELL * PANEL * BITS[kind] // 8 + 64), torch.uint8)


def packed(codes: Tensor, first: Tensor, second: Tensor, kind: str, shelf: Shelf | None = None) -> Packed:
    """Pack codes [N, K] (uint8, from zero) with the numbers [N, ceil(K / 32)] of their cells, on the shelf."""
    (rows, depth), missing = codes.shape, -len(codes) % PANEL
    codes = F.pad(codes, (0, first.shape[1] * CELL - depth, 0, missing))
    first, second = (F.pad(numbers, (0, 0, 0, missing)) for numbers in (first, second))
    out = room(rows, depth, kind, shelf or Shelf()).copy_(_cells(codes, first, second, kind))
    return Packed(out, kind, rows, depth)


def _cells(codes: Tensor, first: Tensor, second: Tensor, kind: str) -> Tensor:
    """Complete panels in the layout of the kernels."""
    panels, cells = codes.shape[0] // PANEL, first.shape[1]
    vectors = codes.view(panels, PANEL, cells, 8, 4).permute(0, 2, 3, 1, 4).reshape(panels, cells, 8, 64)
    low, high = vectors[:, :, :4], vectors[:, :, 4:]
    parts = [vectors] if kind == "s8" else [low & 15 | high << 4]
    if kind == "s6":
        upper = [sum((half[:, :, j] >> 4 << 2 * j for j in range(4)), torch.zeros_like(half[:, :, 0])) for half in (low, high)]
        parts += [torch.stack(upper, 2)]
    numbers = (n.half().view(panels, PANEL, cells).transpose(1, 2).contiguous().view(torch.uint8) for n in (first, second))
    return torch.cat([*(part.flatten(2) for part in parts), *numbers], 2)


def unpacked(weight: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, columns] uint8 and float32 numbers [rows, cells] of panels: the inverse of `packed`."""
    panels, cells, size = weight.cells.shape
    codes, numbers = weight.cells.split((size - 64, 64), 2)
    if weight.kind == "s8":
        vectors = codes.unflatten(2, (8, 64))
    else:
        low = codes[:, :, :256].unflatten(2, (4, 64))
        vectors = torch.cat((low & 15, low >> 4), 2)
    if weight.kind == "s6":
        upper = codes[:, :, 256:].unflatten(2, (2, 64))
        vectors = vectors | torch.stack([upper[:, :, j // 4] >> 2 * (j % 4) & 3 for j in range(8)], 2) << 4
    ordered = vectors.unflatten(3, (PANEL, 4)).permute(0, 3, 1, 2, 4).reshape(panels * PANEL, cells * CELL)
    halves = numbers.contiguous().view(torch.float16).view(panels, cells, 2, PANEL)
    first, second = halves.permute(2, 0, 3, 1).reshape(2, panels * PANEL, cells).float()
    return ordered, first, second


def pack(weight: Tensor, bits: int, shelf: Shelf | None = None) -> Packed:
    """Round weight [N, K] to the nearest 8-, 6- or 4-bit codes, on the shelf."""
    kind = {count: kind for kind, count in BITS.items()}.get(bits)
    if kind is None:
        raise ValueError(f"a packed weight has 8, 6 or 4 bits, got {bits}")
    wide = weight.detach().float()
    groups = F.pad(wide, (0, -wide.shape[1] % CELL)).unflatten(1, (-1, CELL if kind == "u4" else HALF))
    if kind == "u4":
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales, least = ((high - low) / 15).half().float(), (-low).half().float()
        groups, numbers, centre = groups + least[:, :, None], (scales, least), 0
    else:
        extreme, centre = groups.gather(2, groups.abs().argmax(2, keepdim=True))[:, :, 0], CENTRE[kind]
        scales = (extreme / -centre).half().float()
        numbers = scales[:, ::2], scales[:, 1::2]
    codes = (groups / torch.where(scales == 0, 1.0, scales)[:, :, None]).round_().add_(centre).clamp_(0, 2**bits - 1)
    return packed(codes.flatten(1)[:, : wide.shape[1]].to(torch.uint8), *numbers, kind, shelf)


def rounded(x: Tensor) -> Tensor:
    """Rows x [n, K] as integer products see them: per 32 columns, multiples of 1/127 of the largest."""
    groups = F.pad(x.float(), (0, -x.shape[1] % CELL)).unflatten(1, (-1, CELL))
    most = groups.abs().amax(2, keepdim=True)
    codes = (groups * torch.where(most == 0, 0.0, 127.0 / most)).round_()
    return (codes * (most / 127.0)).flatten(1)[:, : x.shape[1]]


def packed_linear(x: Tensor, weight: Packed) -> Tensor:
    """x [n, K] times the packed weight [N, K] transposed: [n, N] float32; K must be the weight's."""
    if x.device.type != "cpu" or weight.cells.device.type != "cpu" or library() is None:
        return F.linear(rounded(x), weight.dequantised())
    x = x.float().contiguous()
    out = torch.empty(len(x), weight.rows)
    call("fs_linear", x, len(x), weight.cells, KINDS[weight.kind], *weight.shape, out)
    return out

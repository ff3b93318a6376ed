"""A vocabulary head in the compiled kernels: norm, product and the choice of clusters in one call."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flashspec.kernels.build import address, call, library, structure
from flashspec.kernels.integers import KINDS, Packed

WEIGHTS = {torch.float32: 0, torch.bfloat16: 1}  # what the compiled kernels call them
WIDTH = 8  # columns that the compiled kernels take at once


MATRIX, HEAD = structure("Matrix"), structure("Head")
NOTHING = MATRIX()  # no rows


class Norm(NamedTuple):
    """Contiguous weight [D], epsilon, and the bias [D] of a norm that subtracts the mean."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None


class Blocks(NamedTuple):
    """Rows [C, slots, D], or the panels of a packed weight, with their ids and biases [C, slots].

    The last `forced` blocks are always scored, plus the `probes` best of the others.
    """

    rows: Tensor | Packed
    ids: Tensor
    bias: Tensor
    probes: int
    forced: int


class Scoring:
    """A head that the kernels serve: its structure, its scores per row, and the tensors that it points into."""

    def __init__(self, head: ctypes.Structure, columns: int, kept: tuple[object, ...]) -> None:
        self.head, self.columns, self.kept = head, columns, kept
        self.width, self.clustered = head.first.depth, head.probes > 0
        self._address, self._call = ctypes.addressof(head), cast(Any, library()).fs_score
        self._spare, more = (call("fs_scoring", ctypes.byref(head), rows) for rows in (0, 1))
        self._each = more - self._spare

    def serves(self, rows: Tensor) -> bool:
        """Whether these are float32 rows [n, D] on the CPU."""
        return rows.dim() == 2 and rows.size(1) == self.width and rows.dtype is torch.float32 and rows.is_cpu

    def __call__(self, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Ids [n, m] (None: the whole vocabulary) and logits [n, m] of float32 rows [n, D] before the norm."""
        rows, count = rows.contiguous(), rows.size(0)
        scratch = torch.empty(self._spare + count * self._each, dtype=torch.uint8)
        logits = torch.empty(count, self.columns)
        ids = torch.empty(count, self.columns, dtype=torch.int64) if self.clustered else None
        self._call(self._address, rows.data_ptr(), count, scratch.data_ptr(), address(ids), logits.data_ptr())
        return ids, logits


def scoring(norm: Norm | None, first: Tensor | Packed, blocks: Blocks | None = None) -> Scoring | None:
    """The head over ids' rows `first` [V, D], or directions `first` [K, D] of `blocks`; None if not served."""
    weights = [first, *([blocks.rows] if blocks else []), *([norm.weight] if norm else [])]
    if library() is None or not all(map(_served, weights)) or (norm and norm.weight.dtype is not torch.float32):
        return None
    norms = (address(norm.weight), address(norm.bias)) if norm else ()
    head, columns = HEAD(norms, norm.eps if norm else 0.0, matrix(first), NOTHING, first.shape[0]), first.shape[0]
    if blocks is not None:
        rows, slots = blocks.rows, blocks.ids.shape[1]
        head.blocks = matrix(rows if isinstance(rows, Packed) else rows.flatten(0, 1))
        columns = (blocks.probes + blocks.forced) * slots
        head.probes, head.forced, head.slots = blocks.probes, blocks.forced, slots
        head.ids, head.bias = blocks.ids.data_ptr(), blocks.bias.data_ptr()
    return Scoring(head, columns, (first, norm, blocks))


def matrix(weight: Tensor | Packed) -> ctypes.Structure:
    """The kernels' view of a weight [N, K] that they serve; the tensor has to outlive it."""
    if isinstance(weight, Packed):
        return MATRIX(weight.cells.data_ptr(), KINDS[weight.kind], weight.depth)
    return MATRIX(weight.data_ptr(), WEIGHTS[weight.dtype], weight.shape[1])


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled kernels compute x against weight: CPU, float32 rows, a contiguous weight whose width fits."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and _served(weight) and library() is not None


def _served(weight: Tensor | Packed) -> bool:
    if isinstance(weight, Packed):
        return weight.depth % WIDTH == 0 and weight.cells.device.type == "cpu"
    plain = weight.device.type == "cpu" and weight.is_contiguous()
    return plain and weight.dtype in WEIGHTS and weight.shape[-1] % WIDTH == 0


def best_numbers(values: Tensor, count: int) -> Tensor:
    """Rising numbers [n, count] of the largest of values [n, m]; ties go to the smallest number."""
    if values.device.type != "cpu" or values.dtype is not torch.float32 or library() is None:
        return values.topk(count, sorted=False).indices.sort(dim=1).values
    values, (rows, width) = values.contiguous(), values.shape
    numbers = torch.empty(rows, count, dtype=torch.int64)
    call("fs_best_numbers", values, rows, width, count, torch.empty(width, dtype=torch.int32), numbers)
    return numbers

"""A vocabulary head as the compiled kernels see it: norm, product and the choice of clusters in one call."""

from __future__ import annotations

import ctypes
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flashspec.kernels.build import compiled, library, pointers, whole
from flashspec.kernels.integers import KINDS, Packed

WEIGHTS = {torch.float32: 0, torch.bfloat16: 1}  # what the compiled kernels call them
WIDTH = 8  # columns that the compiled kernels take at once


class Matrix(ctypes.Structure):
    """Rows of a weight, plain or in integers."""

    _fields_: ClassVar = [
        ("w", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kind", "depth")),
    ]


NOTHING = Matrix()  # no rows


class _Head(ctypes.Structure):
    _fields_: ClassVar = [
        ("norm", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("first", Matrix),
        ("blocks", Matrix),
        *((name, ctypes.c_int64) for name in ("outputs", "probes", "forced", "slots")),
        ("ids", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class Norm(NamedTuple):
    """Contiguous weight [D], epsilon, and the bias [D] of a norm that subtracts the mean; without one it is by the root mean
    square."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None


class Blocks(NamedTuple):
    """Rows [C, slots, D] with their ids and biases [C, slots]; the last `forced` blocks are always scored, and the `probes`
    best of those before them."""

    rows: Tensor
    ids: Tensor
    bias: Tensor
    probes: int
    forced: int


class Scoring:
    """A head that the kernels serve: its structure, scores a row, and the tensors that its addresses point into."""

    def __init__(self, head: ctypes.Structure, columns: int, kept: tuple[object, ...]) -> None:
        self.head, self.columns, self.kept = head, columns, kept
        self.width, self.clustered = head.first.depth, head.probes > 0
        self._address, self._call = ctypes.addressof(head), compiled().fs_score
        self._spare, more = (compiled().fs_scoring(ctypes.byref(head), whole(n)) for n in (0, 1))
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
        listed = None if ids is None else ids.data_ptr()
        self._call(self._address, rows.data_ptr(), count, scratch.data_ptr(), listed, logits.data_ptr())
        return ids, logits


def scoring(norm: Norm | None, first: Tensor | Packed, blocks: Blocks | None = None) -> Scoring | None:
    """The head over a vocabulary `first` [V, D], or over directions `first` [K, D] of `blocks`; None where the kernels do not
    serve it: another device, another type, a width that is no multiple of 8."""
    if library() is None or not all(_served(weight) for weight in (first, *((blocks.rows,) if blocks else ()))):
        return None
    if norm is not None and (norm.weight.dtype is not torch.float32 or norm.weight.device.type != "cpu"):
        return None
    behind = (*pointers(norm.weight, norm.bias), norm.eps) if norm else (None, None, 0.0)
    kept = (first, norm, blocks)
    if blocks is None:
        return Scoring(_Head(*behind, matrix(first), NOTHING, first.shape[0]), first.shape[0], kept)
    slots = blocks.rows.shape[1]
    counts = (first.shape[0], blocks.probes, blocks.forced, slots)
    head = _Head(*behind, matrix(first), matrix(blocks.rows.flatten(0, 1)), *counts, *pointers(blocks.ids, blocks.bias))
    return Scoring(head, (blocks.probes + blocks.forced) * slots, kept)


def matrix(weight: Tensor | Packed) -> Matrix:
    """A weight [N, K] that the kernels serve, as they see it; the tensor has to outlive it."""
    if isinstance(weight, Packed):
        return Matrix(weight.cells.data_ptr(), KINDS[weight.kind], weight.depth)
    return Matrix(weight.data_ptr(), WEIGHTS[weight.dtype], weight.shape[1])


def _served(weight: Tensor | Packed) -> bool:
    if isinstance(weight, Packed):
        return weight.depth % WIDTH == 0 and weight.cells.device.type == "cpu"
    plain = weight.device.type == "cpu" and weight.is_contiguous()
    return plain and weight.dtype in WEIGHTS and weight.shape[-1] % WIDTH == 0


def best_numbers(values: Tensor, count: int) -> Tensor:
    """Numbers [n, count] of the largest of values [n, m], rising; the smallest numbers win a tie where the kernels serve."""
    if values.device.type != "cpu" or values.dtype is not torch.float32 or library() is None:
        return values.topk(count, sorted=False).indices.sort(dim=1).values
    values = values.contiguous()
    keys, numbers = torch.empty(values.shape[1], dtype=torch.int32), torch.empty(len(values), count, dtype=torch.int64)
    pv, *rest = pointers(values, keys, numbers)
    compiled().fs_best_numbers(pv, *map(whole, (*values.shape, count)), *rest)
    return numbers

"""Heads in the compiled kernels, bursts in one call, and noise, draws and verdicts on logits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.kernels.build import address, call, library, structure
from flashspec.kernels.integers import KINDS, Packed

WEIGHTS = {torch.float32: 0, torch.bfloat16: 1}  # what the compiled kernels call them
WIDTH = 8  # columns that the compiled kernels take at once


MATRIX, HEAD, WRITER, LAW, BURST, ROW = map(structure, ("Matrix", "Head", "Writer", "Law", "Burst", "Row"))
NOTHING = MATRIX()  # no rows


class Norm(NamedTuple):
    """Contiguous weight [D], epsilon, and the bias [D] of a norm that subtracts the mean."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [n, D] after this norm, in the weight's dtype."""
        x = rows.to(self.weight.dtype)
        if serves(x, self.weight) and self.weight.dtype is torch.float32:
            x, out = x.contiguous(), torch.empty(x.shape)
            call("fs_norm", x, len(x), self.weight, self.bias, self.eps, x.shape[1], out)
            return out
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


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
    """A head that the kernels serve: its structure, its scores per row, and what it points into."""

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
        """Ids [n, m] (None: all) and logits [n, m] of float32 rows [n, D] before the norm."""
        rows, count = rows.contiguous(), rows.size(0)
        scratch = torch.empty(self._spare + count * self._each, dtype=torch.uint8)
        logits = torch.empty(count, self.columns)
        ids = torch.empty(count, self.columns, dtype=torch.int64) if self.clustered else None
        self._call(self._address, rows.data_ptr(), count, scratch.data_ptr(), address(ids), logits.data_ptr())
        return ids, logits


def scoring(norm: Norm | None, first: Tensor | Packed, blocks: Blocks | None = None) -> Scoring | None:
    """The head over rows `first` [V, D], or directions `first` [K, D] of `blocks`; None if not served."""
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
    """Whether the kernels compute x against weight: CPU, float32 rows, a contiguous weight whose width fits."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and _served(weight) and library() is not None


def _served(weight: Tensor | Packed) -> bool:
    if isinstance(weight, Packed):
        return weight.depth % WIDTH == 0 and weight.cells.device.type == "cpu"
    plain = weight.device.type == "cpu" and weight.is_contiguous()
    return plain and weight.dtype in WEIGHTS and weight.shape[-1] % WIDTH == 0


def _plain(values: Tensor) -> bool:
    return values.dtype is torch.float32 and values.is_cpu and values.is_contiguous() and library() is not None


def best_numbers(values: Tensor, count: int) -> Tensor:
    """Rising numbers [n, count] of the largest of values [n, m]; ties go to the smallest number."""
    if not _plain(values := values.contiguous()):
        return values.topk(count, sorted=False).indices.sort(dim=1).values
    rows, width = values.shape
    numbers = torch.empty(rows, count, dtype=torch.int64)
    call("fs_best_numbers", values, rows, width, count, torch.empty(width, dtype=torch.int32), numbers)
    return numbers


class Law(NamedTuple):
    """How tokens follow from logits: the best one at temperature 0; the best with noise of `hashed` ids [V] and `keys` [n]
    (int32); else a draw from the running sum at `uniform` [n] (float64)."""

    temperature: float
    hashed: Tensor | None = None
    keys: Tensor | None = None
    uniform: Tensor | None = None


class Stretch(NamedTuple):
    """Tokens [room] and rows [room, D] by position, how far they were read, and what is requested."""

    tokens: Tensor
    rows: Tensor
    seen: int
    start: int
    want: int


class Writer:
    """Layers and a head that write together; `times` [3]: ns in body, head and draws."""

    def __init__(self, writer: ctypes.Structure, scoring: Scoring, kept: object) -> None:
        self.scoring, self.times = scoring, torch.zeros(3, dtype=torch.int64)
        self._writer, self._kept, self._scratch = writer, kept, torch.empty(0)

    def __call__(self, place: Stretch, law: Law) -> tuple[Tensor | None, Tensor, Tensor]:
        """Write `want` tokens in place; returns ids [want, m] (None: all), warped logits [want, m], and whether each was
        free of NaN."""
        sound, rules = torch.empty(place.want, dtype=torch.bool), LAW(law.temperature, *map(address, law[1:]))
        return *self._call("fs_burst", place, sound, ctypes.byref(rules)), sound

    def check(self, place: Stretch) -> tuple[Tensor | None, Tensor]:
        """Read tokens up to `start` + `want` and score rows from `start` on: ids and raw logits [want, m]."""
        return self._call("fs_check", place, None)

    def _call(self, kernel: str, place: Stretch, sound: Tensor | None, *law: object) -> tuple[Tensor | None, Tensor]:
        size = (place.want, self.scoring.columns)
        ids = torch.empty(size, dtype=torch.int64) if self.scoring.clustered else None
        logits = torch.empty(size)
        given = [address(t) for t in (place.tokens, place.rows, ids, logits, sound, self.times)]
        burst = ctypes.byref(BURST(*given[:2], *place[2:], *given[2:]))
        writer, threads = ctypes.byref(self._writer), torch.get_num_threads()
        needed = call("fs_bursting", writer, burst, threads)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed)
        call(kernel, writer, *law, burst, threads, self._scratch)
        return ids, logits


def gumbel(hashed: Tensor, keys: Tensor) -> Tensor | None:
    """Gumbel noise [n, m] for hashed ids [1 or n, m] under keys [n], both int32."""
    rows, count = len(keys), hashed.shape[1]
    if hashed.device.type != "cpu" or count % 8 or library() is None:
        return None
    hashed, out = hashed.contiguous(), torch.empty(rows, count)
    call("fs_gumbel", hashed, len(hashed) == 1, keys, rows, count, out)
    return out


def draw(logits: Tensor, uniform: Tensor) -> Tensor | None:
    """Columns [n] where running sums of softmax(logits [n, m]) pass uniform [n] (float64), -1 for none."""
    if not _plain(logits):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    call("fs_draw", logits, *logits.shape, uniform, columns)
    return columns


def best_columns(logits: Tensor, hashed: Tensor | None = None, keys: Tensor | None = None) -> Tensor | None:
    """Columns [n] of the largest of logits [n, m], the first in a tie, -1 for a row with NaN; with noise of hashed ids
    [1 or n, m] under keys [n], both int32."""
    if not _plain(logits) or (hashed is not None and logits.shape[1] % 8):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    hashed = None if hashed is None else hashed.contiguous()
    call("fs_best_columns", logits, *logits.shape, hashed, hashed is not None and len(hashed) == 1, keys, columns)
    return columns


def judge(logits: Tensor, proposals: Sequence[tuple[Tensor | None, Tensor]], tokens: Tensor, uniforms: Tensor) -> Tensor | None:
    """Speculative sampling's verdict [2]: how many tokens [n] are accepted, and the one that follows, -1 for NaN.

    `logits` [n + 1, V] are the verifier's warped ones, `proposals` the ids [1, m] (None: all) and warped logits [1, m] that
    each token was drawn from, `uniforms` [2 n + 1] (float64) decide acceptances, corrections and the last draw.
    """
    if not all(map(_plain, (logits, *(row for _, row in proposals)))):
        return None
    kept = [None if ids is None else ids.contiguous() for ids, _ in proposals]
    theirs = (ROW * max(1, len(kept)))()
    for place, ids, (_, row) in zip(theirs, kept, proposals, strict=False):
        place.logits, place.ids, place.count = row.data_ptr(), address(ids), row.shape[1]
    verdict, count = torch.empty(2, dtype=torch.int64), logits.shape[1]
    call("fs_judge", logits, count, theirs, len(kept), tokens.contiguous(), uniforms, torch.empty(count), verdict)
    return verdict

"""A burst of draft tokens in one call, and noise, draws and verdicts on logits; None where torch has to compute them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.kernels.build import address, call, library, structure
from flashspec.kernels.scoring import Scoring

WRITER, LAW, BURST, ROW = (structure(name) for name in ("Writer", "Law", "Burst", "Row"))


class Law(NamedTuple):
    """How tokens follow from logits: the best one at temperature 0; the best after adding noise of `hashed` ids [V] and `keys`
    [n] (int32); else a draw from the running sum at `uniform` [n] (float64)."""

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
    """Layers and a head (a structure and what it points into) that write together; `times` [3]: ns in body, head and draws."""

    def __init__(self, writer: ctypes.Structure, scoring: Scoring, kept: object) -> None:
        self.scoring, self.times = scoring, torch.zeros(3, dtype=torch.int64)
        self._writer, self._kept, self._scratch = writer, kept, torch.empty(0)

    def __call__(self, place: Stretch, law: Law) -> tuple[Tensor | None, Tensor, Tensor]:
        """Write `want` tokens in place; returns their ids [want, m] (None: the whole vocabulary), warped logits [want, m], and
        whether each was free of NaN."""
        sound, rules = torch.empty(place.want, dtype=torch.bool), LAW(law.temperature, *map(address, law[1:]))
        return *self._call("fs_burst", place, sound, ctypes.byref(rules)), sound

    def check(self, place: Stretch) -> tuple[Tensor | None, Tensor]:
        """Read the tokens up to `start` + `want` and score the rows from `start` on: ids and raw logits [want, m]."""
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


def _served(logits: Tensor) -> bool:
    return logits.dtype is torch.float32 and logits.device.type == "cpu" and logits.is_contiguous() and library() is not None


def gumbel(hashed: Tensor, keys: Tensor) -> Tensor | None:
    """Gumbel noise [n, m] for hashed ids [1 or n, m] under keys [n], both int32."""
    rows, count = len(keys), hashed.shape[1]
    if hashed.device.type != "cpu" or count % 8 or library() is None:
        return None
    hashed, out = hashed.contiguous(), torch.empty(rows, count)
    call("fs_gumbel", hashed, len(hashed) == 1, keys, rows, count, out)
    return out


def draw(logits: Tensor, uniform: Tensor) -> Tensor | None:
    """Columns [n] where the running sums of softmax(logits [n, m]) pass uniform [n] (float64), -1 for none."""
    if not _served(logits):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    call("fs_draw", logits, *logits.shape, uniform, columns)
    return columns


def best_columns(logits: Tensor, hashed: Tensor | None = None, keys: Tensor | None = None) -> Tensor | None:
    """Columns [n] of the largest of logits [n, m], the first in a tie, -1 for a row with NaN; with noise of hashed ids [1 or n,
    m] under keys [n], both int32."""
    if not _served(logits) or (hashed is not None and logits.shape[1] % 8):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    hashed = None if hashed is None else hashed.contiguous()
    call("fs_best_columns", logits, *logits.shape, hashed, hashed is not None and len(hashed) == 1, keys, columns)
    return columns


def judge(
    logits: Tensor, proposals: Sequence[tuple[Tensor | None, Tensor]], tokens: Tensor, uniforms: Tensor
) -> Tensor | None:
    """Speculative sampling's verdict [2]: how many tokens [n] are accepted, and the one that follows, -1 for NaN.

    `logits` [n + 1, V] are the verifier's warped ones, `proposals` the ids [1, m] (None: all) and warped logits [1, m] that
    each token was drawn from, `uniforms` [2 n + 1] (float64) decide acceptances, corrections and the last draw.
    """
    if not all(map(_served, (logits, *(row for _, row in proposals)))):
        return None
    kept = [None if ids is None else ids.contiguous() for ids, _ in proposals]
    theirs = (ROW * max(1, len(kept)))()
    for place, ids, (_, row) in zip(theirs, kept, proposals, strict=False):
        place.logits, place.ids, place.count = row.data_ptr(), address(ids), row.shape[1]
    verdict, count = torch.empty(2, dtype=torch.int64), logits.shape[1]
    call("fs_judge", logits, count, theirs, len(kept), tokens.contiguous(), uniforms, torch.empty(count), verdict)
    return verdict

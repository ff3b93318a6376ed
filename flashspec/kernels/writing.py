"""A burst of draft tokens in one call: embedding, layers, head and draw, token behind token."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.kernels.build import address, call, structure
from flashspec.kernels.scoring import Scoring

WRITER, LAW, BURST = (structure(name) for name in ("Writer", "Law", "Burst"))


class Law(NamedTuple):
    """How tokens follow from logits: the best one at temperature 0; the best behind noise of `hashed` ids [V] and
    `keys` [n] (int32); else a draw from the running sum at `uniform` [n] (float64)."""

    temperature: float
    hashed: Tensor | None = None
    keys: Tensor | None = None
    uniform: Tensor | None = None


class Stretch(NamedTuple):
    """Tokens [room] and rows [room, D] by position, how far they were read, and what is wanted."""

    tokens: Tensor
    rows: Tensor
    seen: int
    start: int
    want: int


class Span(NamedTuple):
    """Layers (structures), their number, the embedding before them, and what is added to it by position."""

    shape: ctypes.Structure
    layers: ctypes.Array
    depth: int
    embedding: ctypes.Structure
    positions: ctypes.Structure


class Writer:
    """Layers and a head that write together; `times` [3] sums nanoseconds in body, head and draws."""

    def __init__(self, span: Span, scoring: Scoring) -> None:
        self.span, self.scoring = span, scoring
        self.times = torch.zeros(3, dtype=torch.int64)
        self._scratch = torch.empty(0)
        shape, layers, head = (ctypes.addressof(part) for part in (span.shape, span.layers, scoring.head))
        self._writer = WRITER(shape, layers, *span[2:], head)

    def __call__(self, place: Stretch, law: Law) -> tuple[Tensor | None, Tensor, Tensor]:
        """Write `want` tokens in place; their ids [want, m] (None: the whole vocabulary), warped logits [want, m], and
        whether each was sound."""
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

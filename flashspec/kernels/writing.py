"""A burst of draft tokens in one call: embedding, layers, head and draw, token behind token."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flashspec.kernels.build import compiled
from flashspec.kernels.scoring import Matrix, Scoring


class _Writer(ctypes.Structure):
    _fields_: ClassVar = [
        ("shape", ctypes.c_void_p),
        ("layers", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("embedding", Matrix),
        ("positions", Matrix),
        ("head", ctypes.c_void_p),
    ]


class _Law(ctypes.Structure):
    _fields_: ClassVar = [
        ("temperature", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("hashed", "keys", "uniform")),
    ]


class _Burst(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("tokens", "rows")),
        *((name, ctypes.c_int64) for name in ("seen", "start", "want")),
        *((name, ctypes.c_void_p) for name in ("ids", "logits", "sound", "times")),
    ]


class Law(NamedTuple):
    """How tokens follow from logits: the best one at temperature 0; with `hashed` ids [V] and `keys` [n] (int32) the best
    behind Gumbel noise; else a draw from the running sum at `uniform` [n] (float64)."""

    temperature: float
    hashed: Tensor | None = None
    keys: Tensor | None = None
    uniform: Tensor | None = None


class Stretch(NamedTuple):
    """Tokens [room] and rows [room, D] by position, how far they were read, and from where how many are wanted."""

    tokens: Tensor
    rows: Tensor
    seen: int
    start: int
    want: int


class Span(NamedTuple):
    """Layers as the kernels see them (structures), how many there are, the embedding in front of them, and what is added to
    it at every position (an empty matrix: nothing)."""

    shape: ctypes.Structure
    layers: ctypes.Array
    depth: int
    embedding: Matrix
    positions: Matrix


class Writer:
    """Layers and a head that write together; `times` [3] sums nanoseconds in body, head and draws over all calls."""

    def __init__(self, span: Span, scoring: Scoring) -> None:
        self.span, self.scoring = span, scoring
        self.times = torch.zeros(3, dtype=torch.int64)
        self._scratch = torch.empty(0)
        addresses = [ctypes.addressof(part) for part in (span.shape, span.layers, scoring.head)]
        self._writer = _Writer(*addresses[:2], span.depth, span.embedding, span.positions, addresses[2])

    def __call__(self, place: Stretch, law: Law) -> tuple[Tensor | None, Tensor, Tensor]:
        """Write `want` tokens in place; their ids [want, m] (None: the whole vocabulary), warped logits [want, m], and
        whether each was sound."""
        sound = torch.empty(place.want, dtype=torch.bool)
        burst, ids, logits = self._burst(place, sound)
        rules = _Law(law.temperature, *(_address(t) for t in law[1:]))
        self._call(compiled().fs_burst, burst, ctypes.byref(rules))
        return ids, logits, sound

    def check(self, place: Stretch) -> tuple[Tensor | None, Tensor]:
        """Read the tokens up to `start` + `want` and score the rows from `start` on: ids and raw logits [want, m]."""
        burst, ids, logits = self._burst(place, None)
        self._call(compiled().fs_check, burst)
        return ids, logits

    def _burst(self, place: Stretch, sound: Tensor | None) -> tuple[_Burst, Tensor | None, Tensor]:
        size = (place.want, self.scoring.columns)
        ids = torch.empty(size, dtype=torch.int64) if self.scoring.clustered else None
        logits = torch.empty(size)
        given = [_address(t) for t in (place.tokens, place.rows, ids, logits, sound, self.times)]
        return _Burst(*given[:2], place.seen, place.start, place.want, *given[2:]), ids, logits

    def _call(self, kernel: Any, burst: _Burst, *law: Any) -> None:
        writer, place, threads = ctypes.byref(self._writer), ctypes.byref(burst), ctypes.c_int64(torch.get_num_threads())
        needed = compiled().fs_bursting(writer, place, threads)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed)
        kernel(writer, *law, place, threads, ctypes.c_void_p(self._scratch.data_ptr()))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

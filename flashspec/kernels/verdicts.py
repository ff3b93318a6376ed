"""Noise, draws and verdicts on logits in the compiled kernels; None where they do not serve, and torch computes them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flashspec.kernels.build import compiled, library, pointers, whole


def _served(logits: Tensor) -> bool:
    return logits.dtype is torch.float32 and logits.device.type == "cpu" and logits.is_contiguous() and library() is not None


def gumbel(hashed: Tensor, keys: Tensor) -> Tensor | None:
    """Gumbel noise [n, m] for hashed ids [1 or n, m] under keys [n], both int32; None where the kernels do not serve it."""
    rows, count = len(keys), hashed.shape[1]
    if hashed.device.type != "cpu" or count % 8 or library() is None:
        return None
    hashed, out = hashed.contiguous(), torch.empty(rows, count)
    same_ids = whole(len(hashed) == 1)
    ph, pk, po = pointers(hashed, keys, out)
    compiled().fs_gumbel(ph, same_ids, pk, whole(rows), whole(count), po)
    return out


def draw(logits: Tensor, uniform: Tensor) -> Tensor | None:
    """Columns [n] drawn from softmax(logits [n, m]) by the inverse of the running sum at uniform [n] (float64), -1 where a row
    cannot be drawn from; None where the kernels do not serve it."""
    if not _served(logits):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    pl, pu, pc = pointers(logits, uniform, columns)
    compiled().fs_draw(pl, whole(len(logits)), whole(logits.shape[1]), pu, pc)
    return columns


def best_columns(logits: Tensor, hashed: Tensor | None = None, keys: Tensor | None = None) -> Tensor | None:
    """Columns [n] of the largest of logits [n, m], the first in a tie, -1 where a row holds NaN; with Gumbel noise added for
    hashed ids [1 or n, m] under keys [n], both int32. None where the kernels do not serve it."""
    if not _served(logits) or (hashed is not None and logits.shape[1] % 8):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    hashed = None if hashed is None else hashed.contiguous()
    pl, ph, pk, pc = pointers(logits, hashed, keys, columns)
    same = whole(hashed is not None and len(hashed) == 1)
    compiled().fs_best_columns(pl, whole(len(logits)), whole(logits.shape[1]), ph, same, pk, pc)
    return columns


class _Row(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("logits", "ids")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("most", "whole")),
    ]


def _row(ids: Tensor | None, logits: Tensor) -> _Row:
    return _Row(logits.data_ptr(), None if ids is None else ids.data_ptr(), logits.shape[1])


def judge(
    logits: Tensor, proposals: Sequence[tuple[Tensor | None, Tensor]], tokens: Tensor, uniforms: Tensor
) -> Tensor | None:
    """Speculative sampling's verdict [2]: how many of the tokens [n] are kept, and the token that follows, -1 where there is NaN.

    `logits` [n + 1, V] are the verifier's warped ones, `proposals` ids [1, m] (None: all) and warped logits [1, m] behind each
    token, `uniforms` [2 n + 1] (float64) decide acceptances, corrections and the last draw. None where the kernels do not
    serve it.
    """
    rows = [t for _, t in proposals]
    if not all(_served(t) for t in (logits, *rows)):
        return None
    kept = [None if ids is None else ids.contiguous() for ids, _ in proposals]
    theirs = (_Row * max(1, len(rows)))(*(_row(ids, row) for ids, row in zip(kept, rows, strict=True)))
    verdict, count = torch.empty(2, dtype=torch.int64), logits.shape[1]
    asked, scratch = tokens.contiguous(), torch.empty(count)
    pl, pt, pu, ps, pv = pointers(logits, asked, uniforms, scratch, verdict)
    compiled().fs_judge(pl, whole(count), theirs, whole(len(rows)), pt, pu, ps, pv)
    return verdict

"""Noise, draws and verdicts on logits in the compiled kernels; None where torch has to compute them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashspec.kernels.build import address, call, library
from flashspec.kernels.source import structure

ROW = structure("Row")


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
    """Columns [n] of the largest of logits [n, m], the first in a tie, -1 where a row holds NaN; with noise of hashed
    ids [1 or n, m] under keys [n], both int32."""
    if not _served(logits) or (hashed is not None and logits.shape[1] % 8):
        return None
    columns = torch.empty(len(logits), dtype=torch.int64)
    hashed = None if hashed is None else hashed.contiguous()
    call("fs_best_columns", logits, *logits.shape, hashed, hashed is not None and len(hashed) == 1, keys, columns)
    return columns


def judge(
    logits: Tensor, proposals: Sequence[tuple[Tensor | None, Tensor]], tokens: Tensor, uniforms: Tensor
) -> Tensor | None:
    """Speculative sampling's verdict [2]: how many tokens [n] are kept, and the one that follows, -1 for NaN.

    `logits` [n + 1, V] are the verifier's warped ones, `proposals` ids [1, m] (None: all) and warped logits [1, m] behind each
    token, `uniforms` [2 n + 1] (float64) decide acceptances, corrections and the last draw.
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

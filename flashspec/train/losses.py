"""Losses that the target's exits and the drafts share, computed in chunks whose distributions stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.model.transformer import Transformer

CHUNK = 512


def cross_entropy(model: Transformer, rows: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of rows [n, hidden] before the final norm."""
    parts = [
        F.cross_entropy(F.linear(model.norm(r), model.head_weight).float(), wanted, reduction="sum")
        for r, wanted in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum() / len(labels)


def divergence(p: Tensor, logits: Tensor, variation: float) -> Tensor:
    """Summed KL(p || q) up to a constant, plus `variation` times the total variation of p [n, V] and q's logits [n, V]."""
    log_q = logits.log_softmax(-1)
    cross = -(p * log_q).sum()
    return cross + variation * (p - log_q.exp()).abs().sum() / 2


def disagreement(model: Transformer, early: Tensor, final: Tensor) -> Tensor:
    """Mean divergence of an exit's rows [n, hidden] from the model's own final rows, which are taken as given."""
    with torch.no_grad():
        p = F.linear(model.norm(final), model.head_weight).softmax(-1)
    return divergence(p, F.linear(model.norm(early), model.head_weight), 1.0) / len(early)

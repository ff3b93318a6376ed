"""Losses that the target's exits and the drafts share, computed in chunks whose distributions stay in cache."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.transformer import Transformer

CHUNK = 512


def computing(dtype: str) -> torch.autocast:
    """The context in which matrix products are computed in `dtype`, float32 or bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def cross_entropy(model: Transformer, rows: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of rows [n, hidden] before the final norm."""
    parts = [
        F.cross_entropy(F.linear(model.norm(r), model.head_weight).float(), wanted, reduction="sum")
        for r, wanted in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum() / len(labels)


def text_loss(model: Transformer, ids: Tensor) -> Tensor:
    """Mean surprise, in nats, at the next tokens of texts [n, length + 1]."""
    return cross_entropy(model, model.rows(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))


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


def slope(wanted: Tensor, logits: Tensor, variation: float) -> tuple[Tensor, Tensor]:
    """`divergence` of softmax(wanted) and logits [n, V], and its gradient by the logits: two passes, not autograd's ten."""
    p, log_q = wanted.softmax(-1, dtype=torch.float32), logits.log_softmax(-1, dtype=torch.float32)
    q = log_q.exp()
    ahead, side = q - p, torch.sign(q - p)
    value = variation * ahead.abs().sum() / 2 - (p * log_q).sum()
    return value, (ahead + variation / 2 * q * (side - (side * q).sum(-1, keepdim=True))).to(logits.dtype)


@functools.cache
def fused() -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """`slope`, compiled."""
    return torch.compile(slope)

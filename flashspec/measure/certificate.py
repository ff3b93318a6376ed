"""Divergence certificates: is the first differing token a numeric tie of the dtype, or a defect?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.models import dense_head, spans
from flashspec.models.transformer import Transformer
from flashspec.sampling import Dice, Sampling, warp

Scorer = Callable[[Sequence[int], int], Tensor]
TIE_FACTOR = 4.0
BLOCKINGS = (1, 2, 3, 5, 8, 64)
CONTENDERS = 16


class Certificate(NamedTuple):
    """Why two texts differ at `position`.

    `tokens` are the two tokens there; `gap` is how far the worse one is below the target's best logit; `noise` is the spread of
    that row's leading logits over blockings.
    """

    position: int
    tokens: tuple[int, int]
    gap: float
    noise: float

    @property
    def verdict(self) -> str:
        """ "numeric tie" where gap <= 4 x noise, otherwise "defect"; NaN is a defect."""
        return "numeric tie" if self.gap <= TIE_FACTOR * self.noise else "defect"


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first differing token; the shorter length if one text continues the other; None if they are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    shorter = None if len(one) == len(other) else min(len(one), len(other))
    return next((index for index, (a, b) in pairs if a != b), shorter)


def shape_noise(rows: Tensor) -> float:
    """Largest spread of one leading logit over rows [blockings, vocab] of one position."""
    leading = rows.double().mean(0).topk(min(CONTENDERS, rows.shape[1])).indices
    chosen = rows.double()[:, leading]
    return float((chosen.amax(0) - chosen.amin(0)).max())


def certify(one: Sequence[int], other: Sequence[int], prompt: Sequence[int], scorer: Scorer) -> Certificate | None:
    """Certificate of the first difference between two continuations of `prompt`, or None if they are equal.

    `scorer(prefix, block)` gives the target's logits [vocab] after `prefix`, read `block` tokens at a time. Raises ValueError
    where one text is a prefix of the other, which rounding cannot explain.
    """
    at = first_difference(one, other)
    if at is None:
        return None
    if at >= min(len(one), len(other)):
        raise ValueError(f"texts of {len(one)} and {len(other)} tokens agree as far as both go; compare equal lengths")
    prefix = [*prompt, *one[:at]]
    rows = torch.stack([scorer(prefix, block).reshape(-1) for block in (*BLOCKINGS, len(prefix))])
    tokens, best = (int(one[at]), int(other[at])), rows[0].double()
    return Certificate(at, tokens, float(best.max() - best[list(tokens)].min()), shape_noise(rows))


def target_scorer(target: Transformer, sampling: Sampling) -> Scorer:
    """Scores of a target read in blocks, warped and with the coupling's noise, in units of raw logits."""
    head = dense_head(target.norm, target)

    @torch.inference_mode()
    def score(prefix: Sequence[int], block: int) -> Tensor:
        tokens = torch.tensor(list(prefix), device=target.device)
        (reader,) = spans(target, (target.config.layers,), len(tokens))
        for stop in range(block, len(tokens) + block, block):
            reader.read(tokens[:stop])
        scores = warp(head(reader.rows[len(tokens) - 1 :]), sampling)
        if not sampling.temperature:
            return scores.logits[0]
        noise = Dice(sampling.seed).gumbel(scores, torch.tensor([len(tokens)]), head.vocab_size)
        return (scores.logits + noise)[0] * sampling.temperature

    return score

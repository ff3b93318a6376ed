"""Prompt lookup: the draft copies what followed the last tokens earlier in the text (Saxena 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashspec.heads.base import Head
from flashspec.models.reader import Reader
from flashspec.sampling import Scores

NOTHING = -1
LONGEST, SHORTEST = 3, 2  # tokens that are compared, and that must agree


def continuation(tokens: Tensor, longest: int, shortest: int) -> Tensor:
    """The id [1] that followed the latest longest earlier occurrence of the last tokens of [n]; NOTHING if there is none.

    Occurrences are compared over at most `longest` and at least `shortest` tokens; no host synchronisation.
    """
    n = len(tokens)
    if n <= shortest:
        return tokens.new_full((1,), NOTHING)
    span = min(longest, n - 1)
    padded = torch.cat((tokens.new_full((span - 1,), NOTHING), tokens[:-1]))
    alike = padded.unfold(0, span, 1).flip(1) == tokens[n - span :].flip(0)
    lengths = alike.long().cumprod(1).sum(1)
    places = torch.arange(n - 1, device=tokens.device)
    best = (lengths * n + places).argmax()[None]
    return torch.where(lengths[best] >= shortest, tokens[best + 1], NOTHING)


class LookupReader(Reader):
    """A reader whose newest row is the id that lookup proposes next; stage 0 needs no older rows."""

    def __init__(self, context: int, device: torch.device | str = "cpu") -> None:
        super().__init__(context, torch.full((context,), NOTHING, dtype=torch.int64, device=device))

    def _fresh(self, tokens: Tensor) -> Tensor:
        return continuation(tokens, LONGEST, SHORTEST)


@dataclass(frozen=True)
class LookupHead(Head):
    """Rows that are ids, as one-candidate scores: probability 1, or none where the row is NOTHING."""

    vocab_size: int

    def __call__(self, rows: Tensor) -> Scores:
        """Scores [n, 1] of rows [n]."""
        logits = torch.zeros(len(rows), 1, device=rows.device)
        return Scores(rows.clamp(min=0)[:, None], logits.masked_fill(rows[:, None] == NOTHING, -torch.inf))


def nothing_to_say(scores: Scores) -> Tensor:
    """In doubt where no candidate has a probability, which means no match."""
    return torch.isinf(scores.logits).all(-1)

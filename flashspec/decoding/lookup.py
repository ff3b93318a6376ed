"""Prompt lookup: drafts copied from where the last tokens stood before, by no model at all (Saxena 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from flashspec.heads.base import Fixed
from flashspec.models.reader import Reads
from flashspec.sampling import Dice, Scores

NOTHING = -1


def continuation(tokens: Tensor, longest: int, shortest: int) -> Tensor:
    """The id [1] that followed the latest longest earlier occurrence of the last tokens of [n], NOTHING where there is none.

    Occurrences are compared over at most `longest` tokens and count from `shortest`; no host synchronisation.
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


class LookupReader:
    """A reader whose newest row is the id that lookup proposes next; it reads the text itself and costs no layer.

    Older rows are not filled in: nobody asks a stage 0 for them.
    """

    layers = 0

    def __init__(self, context: int, longest: int = 3, device: torch.device | str = "cpu") -> None:
        if longest < 1:
            raise ValueError(f"lookup compares at least 1 token, got {longest}")
        self.context, self.longest, self.shortest = context, longest, min(2, longest)
        self.rows = torch.full((context,), NOTHING, dtype=torch.int64, device=device)
        self.seen = 0
        self.text: Tensor | None = None

    def read(self, tokens: Tensor) -> Reads:
        """Read what is missing of tokens [n]; the last of the first n rows is then the proposal."""
        new = max(0, len(tokens) - self.seen)
        if new:
            self.rows[len(tokens) - 1 : len(tokens)] = continuation(tokens, self.longest, self.shortest)
            self.seen += new
        return (new,)

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.seen = min(self.seen, n)


class LookupHead(Fixed):
    """Rows that are ids, as one-candidate scores: probability 1 on the id, none at all where the row is NOTHING."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, 1] of rows [n]."""
        logits = torch.zeros(len(rows), 1, device=rows.device)
        return Scores(rows.clamp(min=0)[:, None], logits.masked_fill(rows[:, None] == NOTHING, -torch.inf))

    def bytes_read(self, rows: int) -> int:
        """No weights."""
        return 0

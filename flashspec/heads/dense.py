"""The exact head: every row of the vocabulary weight, in one fused linear."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_rows, fused, project, weight_of
from flashspec.scores import Dice, Scores


@dataclass(frozen=True)
class DenseHead:
    """Scores the whole vocabulary: weight [vocab, hidden] times the normalised row."""

    norm: Norm | None
    weight: Tensor
    prepared: Norm = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", weight_of(self.weight))
        object.__setattr__(self, "prepared", fused(self.norm))

    @property
    def vocab_size(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the rows it reads."""
        return self.weight.shape[1]

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.vocab_size

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Logits [n, vocab] of rows [n, hidden]; nothing is drawn."""
        check_rows(rows, self.weight.shape[1])
        return Scores(None, project(self.prepared(rows), self.weight))

    def bytes_read(self, rows: int) -> int:
        """The weight, once, however many rows share the reading."""
        return self.weight.numel() * self.weight.element_size()

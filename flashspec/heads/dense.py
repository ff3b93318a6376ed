"""The exact head: every row of the vocabulary weight, in one fused linear."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, fused, project, weight_of
from flashspec.scores import Dice, Scores
from flashspec.typed import typed


@typed
@dataclass(frozen=True)
class DenseHead(WeightHead):
    """Scores the whole vocabulary: weight [vocab, hidden] times the normalised row."""

    norm: Norm | None
    weight: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", weight_of(self.weight))
        object.__setattr__(self, "norm", fused(self.norm))

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Logits [n, vocab] of rows [n, hidden]; nothing is drawn."""
        return self.scored(rows) or Scores(None, project(self.states(rows), self.weight))

    def bytes_read(self, rows: int) -> int:
        """The weight, once, however many rows share the reading."""
        return self.weight.numel() * self.weight.element_size()

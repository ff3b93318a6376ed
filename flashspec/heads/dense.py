"""Heads that score every id: an exact weight, one rounded to integers, or rows that are logits already."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from flashspec.heads.base import Fixed, Norm, WeightHead, check_rows, project, weight_of
from flashspec.kernels import Packed, Scoring, pack
from flashspec.sampling import Dice, Scores
from flashspec.typed import typed


@typed
@dataclass(frozen=True, eq=False)
class DenseHead(WeightHead):
    """Logits of the whole vocabulary: weight [vocab, hidden] times the normalised row, exact.

    A `Packed` weight of 8 or 4 bits is the plain cheap head that the others have to beat.
    """

    weight: Tensor | Packed

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.vocab_size

    @cached_property
    def scoring(self) -> Scoring | None:
        return self.compiled(self.weight)

    def score(self, states: Tensor) -> Scores:
        return Scores(None, project(states, self.weight))

    def bytes_read(self, rows: int) -> int:
        return self.weight.nbytes


def quantized(weight: Tensor, norm: Norm | None = None, bits: int = 8) -> DenseHead:
    """The head of weight [vocab, hidden] rounded to `bits` (8, 6 or 4)."""
    return DenseHead(norm, pack(weight_of(weight), bits))


@dataclass(frozen=True)
class LogitRows(Fixed):
    """The head of a reader whose rows [n, vocab] are logits already; the model below has paid for them."""

    vocab_size: int

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        check_rows(rows, self.vocab_size)
        return Scores(None, rows)

    def bytes_read(self, rows: int) -> int:
        return 0

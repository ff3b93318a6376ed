"""Heads that leave no id out: every row of the vocabulary weight, exact or rounded to integers, or logits already."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashspec.heads.base import Fixed, Norm, WeightHead, check_rows, fused, weight_of
from flashspec.kernels import Packed, pack
from flashspec.sampling import Dice, Scores
from flashspec.typed import typed


@typed
@dataclass(frozen=True)
class DenseHead(WeightHead):
    """Exact logits of the whole vocabulary: weight [vocab, hidden] times the normalised row."""

    norm: Norm | None
    weight: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", weight_of(self.weight))
        object.__setattr__(self, "norm", fused(self.norm))


@dataclass(frozen=True)
class QuantizedDenseHead(WeightHead):
    """Approximate logits of the whole vocabulary from integer rows: the plain cheap head that others have to beat.

    int8 has a scale a row, int4 one for every 128 columns; activations stay float32. The integers are a function of the
    weight, so there is nothing to save.
    """

    norm: Norm
    weight: Packed

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None, bits: int = 8) -> QuantizedDenseHead:
        """Round weight [vocab, hidden] to `bits` (8 or 4)."""
        return cls(fused(norm), pack(weight_of(weight), bits))


@dataclass(frozen=True)
class LogitRows(Fixed):
    """The head of a reader whose rows [n, vocab] are logits already; the model below has paid for them."""

    vocab_size: int

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """The rows themselves."""
        check_rows(rows, self.vocab_size)
        return Scores(None, rows)

    def bytes_read(self, rows: int) -> int:
        """Nothing."""
        return 0

"""Every row of the vocabulary weight, rounded to 8- or 4-bit integers: the plain cheap head that others have to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, fused, project, weight_of
from flashspec.kernels import Packed, pack
from flashspec.scores import Dice, Scores


@dataclass(frozen=True)
class QuantizedDenseHead(WeightHead):
    """Approximate logits of the whole vocabulary from integer rows; no id is left out, so nothing needs a fallback.

    int8 has a scale a row, int4 one for every 128 columns; activations stay float32. The integers are a function of the
    weight, so there is nothing to save.
    """

    norm: Norm
    weight: Packed

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None, bits: int = 8) -> QuantizedDenseHead:
        """Round weight [vocab, hidden] to `bits` (8 or 4)."""
        return cls(fused(norm), pack(weight_of(weight), bits))

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Logits [n, vocab] of rows [n, hidden], float32; nothing is drawn."""
        return self.scored(rows) or Scores(None, project(self.states(rows), self.weight))

    def bytes_read(self, rows: int) -> int:
        """Integers and scales, once, however many rows share the reading."""
        return self.weight.nbytes

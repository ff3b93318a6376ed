"""Every row of the vocabulary weight, rounded to 8- or 4-bit integers: the plain cheap head that others have to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_rows, fused, project, weight_of
from flashspec.kernels import Packed, pack
from flashspec.scores import Dice, Scores


@dataclass(frozen=True)
class QuantizedDenseHead:
    """Approximate logits of the whole vocabulary from integer rows; no id is left out, so nothing needs a fallback.

    int8 has a scale a row, int4 one for every 128 columns; activations stay float32. The integers are a function of the
    weight, so there is nothing to save.
    """

    norm: Norm
    packed: Packed

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None, bits: int = 8) -> QuantizedDenseHead:
        """Round weight [vocab, hidden] to `bits` (8 or 4)."""
        return cls(fused(norm), pack(weight_of(weight), bits))

    @property
    def vocab_size(self) -> int:
        """Rows of the weight."""
        return self.packed.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the rows it reads."""
        return self.packed.shape[1]

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.vocab_size

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Logits [n, vocab] of rows [n, hidden], float32; nothing is drawn."""
        check_rows(rows, self.hidden)
        return Scores(None, project(self.norm(rows), self.packed))

    def bytes_read(self, rows: int) -> int:
        """Integers and scales, once, however many rows share the reading."""
        return self.packed.nbytes

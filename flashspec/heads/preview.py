"""A low-rank preview of all logits, then exact ones for the best: SVD-softmax (Shim et al., NeurIPS 2017, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, fused, project, rescore, weight_of
from flashspec.kernels.pages import Shelf
from flashspec.scores import Dice, Scores


@dataclass(frozen=True)
class PreviewHead(WeightHead):
    """Exact logits of the `candidates` ids that look best in the weight's `rank` strongest directions.

    The others have probability zero and are left to the verifier. `basis` [rank, hidden] are right singular vectors of the
    weight, `preview` [vocab, rank] the weight in them. Both are functions of the weight, so there is nothing to save.
    """

    norm: Norm
    weight: Tensor
    basis: Tensor
    preview: Tensor
    candidates: int

    @classmethod
    def build(
        cls, weight: Tensor, norm: Norm | None = None, rank: int | None = None, candidates: int | None = None
    ) -> PreviewHead:
        """Rotate weight [vocab, hidden]; `rank` is an eighth of the width, `candidates` 1/64 of the ids, if not given.

        Raises ValueError where either is out of range.
        """
        weight = weight_of(weight)
        vocab, width = weight.shape
        rank = sizes(vocab, width)[0] if rank is None else rank
        candidates = sizes(vocab, width)[1] if candidates is None else candidates
        if not 1 <= rank <= width:
            raise ValueError(f"rank must lie between 1 and the width {width}, got {rank}")
        basis = _directions(weight, rank)
        preview = torch.cat([part.double() @ basis.T for part in weight.split(1 << 14)])
        shelf, kept = Shelf(), torch.float64 if weight.dtype is torch.float64 else weight.dtype
        made = cls(fused(norm), weight, shelf.moved(basis.to(kept)), shelf.moved(preview.to(kept)), candidates)
        return made.with_shortlist(candidates)

    @property
    def rank(self) -> int:
        """Directions of the preview."""
        return self.basis.shape[0]

    @property
    def rows_scored(self) -> int:
        """Inner products of the full width that cost as much as those of one hidden row, rounded up."""
        return self.rank + self.candidates - (-self.vocab_size * self.rank // self.hidden)

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, candidates] of rows [n, hidden], ids rising."""
        states = self.states(rows)
        looks = project(project(states, self.basis), self.preview)
        ids = looks.topk(self.candidates, sorted=False).indices.sort(1).values
        return Scores(ids, rescore(states, self.weight, ids))

    def bytes_read(self, rows: int) -> int:
        """Basis and preview once, the candidates' rows once for each hidden row."""
        return self.basis.nbytes + self.preview.nbytes + rows * self.candidates * self.hidden * self.weight.element_size()

    def with_shortlist(self, candidates: int) -> PreviewHead:
        """This head with another number of candidates; nothing is copied."""
        if not 1 <= candidates <= self.vocab_size:
            raise ValueError(f"candidates must lie between 1 and the {self.vocab_size} ids, got {candidates}")
        return replace(self, candidates=candidates)


def sizes(vocab: int, width: int) -> tuple[int, int]:
    """Rank and candidates where none are given."""
    return min(width, -(-width // 64) * 8), -(-vocab // 64)


def _directions(weight: Tensor, rank: int) -> Tensor:
    """The `rank` strongest right singular vectors [rank, hidden] of the weight, strongest first, float64."""
    width = weight.shape[1]
    square = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
    for part in weight.split(1 << 14):
        square += part.double().T @ part.double()
    return torch.linalg.eigh(square).eigenvectors[:, -rank:].T.flip(0).contiguous()

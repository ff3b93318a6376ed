"""Heads that score a list of candidates exactly; every other id has probability zero and is left to the verifier.

Either one list for all rows: the most frequent ids (FR-Spec, arXiv 2502.14856; VocabTrim, arXiv 2506.22694) or those of the
context (NanoSpec, arXiv 2605.26444). Or one list per row: the best of a low-rank preview of all logits (SVD-softmax, Shim et
al., NeurIPS 2017, section 3), or the hits of a search index (`heads.index`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from flashspec.heads.base import HeadFile, Norm, StoredHead, WeightHead, check_count, project, project_blocks, weight_of
from flashspec.kernels.integers import Shelf
from flashspec.sampling import Scores
from flashspec.theory.checks import at_least

SIZE, TOP = 2048, 16  # ids of a context, and of a verification that enter it


class ListedHead(WeightHead):
    """A head with one list for all rows: rising `ids` [m], and `rows` [m, hidden], a copy of their rows."""

    ids: Tensor
    rows: Tensor

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return len(self.ids)

    def score(self, states: Tensor) -> Scores:
        return Scores(self.ids.expand(len(states), -1), project(states, self.rows))

    def bytes_read(self, rows: int) -> int:
        return self.rows.nbytes


def ranked_by_frequency(tokens: Tensor, vocab_size: int) -> Tensor:
    """Ids [V], the most frequent in `tokens` first; ties and unseen ids in order of their number.

    ValueError where there are no tokens or a token is not an id.
    """
    if not tokens.numel():
        raise ValueError("there are no tokens to rank ids by; give the ids of a text")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise ValueError(f"token ids run from 0 to {vocab_size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    return torch.bincount(tokens.flatten(), minlength=vocab_size).argsort(descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class ShortlistHead(ListedHead, StoredHead):
    """Scores the first of the ids `ranked` [m]."""

    ranked: Tensor
    ids: Tensor
    rows: Tensor
    key = "shortlist_head"

    @classmethod
    def build(cls, weight: Tensor, ranked: Tensor, norm: Norm | None = None, size: int | None = None) -> ShortlistHead:
        """Take `size` (default: a quarter of the vocabulary) of the ids `ranked` [m], best first.

        Raises ValueError where ids repeat or do not exist, or there are fewer than `size`.
        """
        weight, ranked = weight_of(weight), ranked.long()
        vocab = len(weight)
        if ranked.numel() and (int(ranked.min()) < 0 or int(ranked.max()) >= vocab):
            raise ValueError(f"a ranking lists ids from 0 to {vocab - 1}, got {int(ranked.min())}..{int(ranked.max())}")
        if len(ranked.unique()) < len(ranked):
            raise ValueError("a ranking lists every id once, and this one repeats some; rank ids, not tokens")
        size = check_count("shortlist", -(-vocab // 4) if size is None else size, len(ranked), "ranked ids")
        ids = ranked[:size].sort().values.to(weight.device)
        return cls(norm, weight, ranked, ids, Shelf().moved(weight[ids]))

    def with_shortlist(self, size: int) -> ShortlistHead:
        """This head with another number of ids."""
        return ShortlistHead.build(self.weight, self.ranked, self.norm, size)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"ranked": self.ranked.int()}, {"size": len(self.ids)}

    @classmethod
    def restored(cls, file: HeadFile, weight: Tensor, norm: Norm | None) -> ShortlistHead:
        return cls.build(weight, file.numbers("ranked", 1), norm, file.fact("size", int))


@dataclass(frozen=True, eq=False)
class ContextHead(ListedHead):
    """Scores the `size` ids seen last in the prompt, the text so far and the verifier's `top` best guesses.

    Only `learn` changes the list, between rounds, so every exact rule stays exact. Until enough ids were seen, the smallest
    ids fill it, the most frequent ones in a BPE vocabulary. Shapes and addresses never change.
    """

    size: int = SIZE
    top: int = TOP
    ids: Tensor = field(init=False, repr=False)
    rows: Tensor = field(init=False, repr=False)
    seen: Tensor = field(init=False, repr=False)  # when each id was, below 0 where it was not

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, size=1, top=1)
        size, device = min(self.size, self.vocab_size), self.weight.device
        ids = torch.zeros(size, dtype=torch.int64, device=device)
        rows = Shelf().zeros((size, self.hidden), self.weight.dtype, device)
        vars(self).update(size=size, ids=ids, rows=rows, seen=torch.arange(self.vocab_size, device=device))
        self.learn(self.seen[:0], None)

    def score(self, states: Tensor) -> Scores:
        ids = self.ids.clone()  # which later lists do not overwrite
        return Scores(ids.expand(len(states), -1), project(states, self.rows))

    @torch.inference_mode()
    def learn(self, tokens: Tensor, scores: Scores | None) -> None:
        """Take in final tokens [n] and the verifier's scores; waits for nothing."""
        if scores is None:
            torch.arange(-1, -self.vocab_size - 1, -1, out=self.seen)
        else:
            columns = scores.logits.topk(min(self.top, scores.logits.shape[1])).indices
            ids = columns if scores.ids is None else scores.ids.gather(1, columns)
            tokens = torch.cat((ids.T.flip(0).flatten(), tokens))  # the best of all rows last
        stamps = torch.arange(1, len(tokens) + 1, device=tokens.device) + self.seen.amax().clamp(min=0)
        self.seen.scatter_reduce_(0, tokens, stamps, "amax")
        self.ids.copy_(self.seen.topk(self.size).indices.sort().values)
        torch.index_select(self.weight, 0, self.ids, out=self.rows)

    def with_shortlist(self, size: int) -> ContextHead:
        """A new head with another number of ids."""
        return replace(self, size=size)


@dataclass(frozen=True, eq=False)
class SoughtHead(WeightHead):
    """Searches `candidates` ids for every row; where it finds fewer, but at least one, pads with logits of -inf."""

    candidates: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("candidates", self.candidates, self.vocab_size, "ids")

    @abstractmethod
    def find(self, states: Tensor) -> Tensor:
        """Rising ids [n, candidates] for normalised rows [n, hidden], -1 where there are fewer."""

    def score(self, states: Tensor) -> Scores:
        found = self.find(states)
        ids, off = found.clamp(min=0), found < 0
        off[:, -1] &= ~off.all(1)
        exact = project_blocks(states, self.weight[:, None], ids)[:, :, 0]
        return Scores(ids, exact.masked_fill(off, -torch.inf))

    def with_shortlist(self, candidates: int) -> Self:
        """This head with another number of candidates; nothing is copied."""
        return replace(self, candidates=candidates)


@dataclass(frozen=True, eq=False)
class PreviewHead(SoughtHead):
    """Scores the ids that look best along the weight's strongest directions.

    `basis` [rank, hidden] holds right singular vectors, `preview` [vocab, rank] the weight in that basis.
    """

    basis: Tensor
    preview: Tensor

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None) -> PreviewHead:
        """Rotate weight [vocab, hidden]; the rank is an eighth of the width, the candidates 1/64 of the ids."""
        weight, parts = weight_of(weight), weight.detach().split(1 << 14)
        rank, candidates = sizes(*weight.shape)
        square = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
        for part in parts:
            square += part.double().T @ part.double()
        basis = torch.linalg.eigh(square).eigenvectors[:, -rank:].T.flip(0).contiguous()
        preview, shelf = torch.cat([part.double() @ basis.T for part in parts]), Shelf()
        basis, preview = (shelf.moved(part.to(weight.dtype)) for part in (basis, preview))
        return cls(norm, weight, candidates, basis, preview)

    @property
    def rows_scored(self) -> int:
        """Full-width inner products that cost as much as scoring one hidden row, rounded up."""
        rank = len(self.basis)
        return rank + self.candidates - (-self.vocab_size * rank // self.hidden)

    def find(self, states: Tensor) -> Tensor:
        looks = project(project(states, self.basis), self.preview)
        return looks.topk(self.candidates, sorted=False).indices.sort(1).values

    def bytes_read(self, rows: int) -> int:
        exact = rows * self.candidates * self.hidden * self.weight.element_size()
        return self.basis.nbytes + self.preview.nbytes + exact


def sizes(vocab: int, width: int) -> tuple[int, int]:
    """Rank and number of candidates of a preview."""
    return min(width, -(-width // 64) * 8), -(-vocab // 64)

"""Heads that score a list of candidates exactly; every other id has probability zero and is left to the verifier.

One list for all rows: the most frequent ids (FR-Spec, arXiv 2502.14856, counts a corpus; VocabTrim, arXiv 2506.22694, what the
target wrote) or those of the context (NanoSpec, arXiv 2605.26444). Or a list a row: the best of a low-rank preview of all
logits (SVD-softmax, Shim et al., NeurIPS 2017, section 3), or of a search index (`heads.index`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, check_count, fused, project, rescore, weight_of
from flashspec.heads.storage import fact, load_state, save_state, stored
from flashspec.kernels.pages import Shelf
from flashspec.sampling import Dice, Scores

KEY = "shortlist_head"
SIZE, TOP = 2048, 16  # ids of a context, and of a verification that enter it


class ListedHead(WeightHead):
    """A head with one list for all rows: `ids` [m] rise, and `rows` [m, hidden] is a contiguous copy of their rows."""

    ids: Tensor
    rows: Tensor

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return len(self.ids)

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, m] of rows [n, hidden]."""
        return Scores(self.ids.expand(len(rows), -1), project(self.states(rows), self.rows))

    def bytes_read(self, rows: int) -> int:
        """The listed rows, once, however many hidden rows share the reading."""
        return self.rows.nbytes


class SearchHead(WeightHead):
    """A head with a list for every row: `find` names ids [n, m], rising, for normalised rows; theirs are read where they are."""

    weight: Tensor
    find: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, m] of rows [n, hidden]."""
        states = self.states(rows)
        ids = self.find(states)
        return Scores(ids, rescore(states, self.weight, ids))


def ranked_by_frequency(tokens: Tensor, vocab_size: int) -> Tensor:
    """Ids [V], the most frequent in `tokens` first; ties and ids that never occur go by their number.

    ValueError where there are no tokens or one is no id.
    """
    if not tokens.numel():
        raise ValueError("there are no tokens to rank ids by; give the ids of a text")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise ValueError(f"token ids run from 0 to {vocab_size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    return torch.bincount(tokens.flatten(), minlength=vocab_size).argsort(descending=True, stable=True)


@dataclass(frozen=True)
class ShortlistHead(ListedHead):
    """Lists the first of the ids `ranked` [m]."""

    norm: Norm
    weight: Tensor
    ranked: Tensor
    ids: Tensor
    rows: Tensor

    @classmethod
    def build(cls, weight: Tensor, ranked: Tensor, norm: Norm | None = None, size: int | None = None) -> ShortlistHead:
        """List `size` (a quarter of the vocabulary, if not given) of the ids `ranked` [m], best first.

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
        return cls(fused(norm), weight, ranked, ids, Shelf().moved(weight[ids]))

    def with_shortlist(self, size: int) -> ShortlistHead:
        """This head with another number of ids."""
        return ShortlistHead.build(self.weight, self.ranked, self.norm, size)

    def save(self, path: Path | str) -> None:
        """Write the ranking (not the weight) to a safetensors file."""
        save_state(Path(path), KEY, self.weight, {"ranked": self.ranked.int()}, {"size": len(self.ids)})

    @classmethod
    def load(cls, path: Path | str, weight: Tensor, norm: Norm | None = None) -> ShortlistHead:
        """Read what `save` wrote for this weight; ValueError where it is another one."""
        tensors, facts = load_state(Path(path), KEY, weight)
        return cls.build(weight, stored(tensors, "ranked", 1, Path(path)), norm, fact(facts, "size", int, Path(path)))


@dataclass(eq=False)
class ContextHead(ListedHead):
    """Lists the `size` ids seen last in the prompt, the text so far and the verifier's best guesses.

    `learn` changes the list between rounds and nothing else does, so within a round the head is row-wise like any other. The
    drafts are then a function of the rounds before, not of the row alone. What is verified is not touched by that: the list
    is settled before a token is drawn, so every exact rule keeps its distribution, and under Gumbel coupling the text stays
    the baseline's; only how many drafts are accepted may depend on the rounds. Until enough ids were seen, the list is filled
    with the smallest ids, in a BPE vocabulary the most frequent ones. Shapes and addresses never change.
    """

    norm: Norm | None
    weight: Tensor
    size: int = SIZE
    top: int = TOP
    ids: Tensor = field(init=False, repr=False)
    rows: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.weight = weight_of(self.weight)
        if self.size < 1 or self.top < 0:
            raise ValueError(f"size must be at least 1 and top at least 0, got {self.size} and {self.top}")
        self.size = min(self.size, self.vocab_size)
        device = self.weight.device
        self._unseen = -torch.arange(1, self.vocab_size + 1, device=device)
        self._seen, self._clock = self._unseen.clone(), 0
        self.ids = torch.zeros(self.size, dtype=torch.int64, device=device)
        self.rows = Shelf().zeros((self.size, self.hidden), self.weight.dtype, device)
        self._gather()

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, size] of rows [n, hidden], which later lists leave alone."""
        scores = super().__call__(rows)
        return scores._replace(ids=scores.ids.clone())  # type: ignore[union-attr]

    @torch.inference_mode()
    def learn(self, tokens: Tensor, scores: Scores | None) -> None:
        """Take in tokens [n] that became final and the verifier's scores behind them; no host synchronisation.

        `sampling` None says that a new text begins with these tokens: what was seen before is forgotten.
        """
        if scores is None:
            self._seen.copy_(self._unseen)
            self._clock = 0
        fresh = tokens if scores is None or not self.top else torch.cat((_best(scores, self.top), tokens))
        stamps = torch.arange(1, len(fresh) + 1, device=fresh.device) + self._clock
        self._seen.scatter_reduce_(0, fresh, stamps, "amax")
        self._clock += len(fresh)
        self._gather()

    def _gather(self) -> None:
        """Copy the rows of the ids seen last into the buffer, ids rising."""
        self.ids.copy_(self._seen.topk(self.size).indices.sort().values)
        torch.index_select(self.weight, 0, self.ids, out=self.rows)

    def with_shortlist(self, size: int) -> ContextHead:
        """A fresh head with another number of ids."""
        return replace(self, size=size)


def _best(scores: Scores, top: int) -> Tensor:
    """The best ids of every row, the best of all rows last."""
    columns = scores.logits.topk(min(top, scores.logits.shape[1])).indices
    ids = columns if scores.ids is None else scores.ids.gather(1, columns)
    return ids.T.flip(0).flatten()


@dataclass(frozen=True)
class PreviewHead(SearchHead):
    """Lists the `candidates` ids that look best in the weight's `rank` strongest directions.

    `basis` [rank, hidden] are right singular vectors of the weight, `preview` [vocab, rank] the weight in them. Both are
    functions of the weight, so there is nothing to save.
    """

    norm: Norm
    weight: Tensor
    basis: Tensor
    preview: Tensor
    candidates: int

    def __post_init__(self) -> None:
        check_count("candidates", self.candidates, self.vocab_size, "ids")

    @classmethod
    def build(
        cls, weight: Tensor, norm: Norm | None = None, rank: int | None = None, candidates: int | None = None
    ) -> PreviewHead:
        """Rotate weight [vocab, hidden]; `rank` is an eighth of the width, `candidates` 1/64 of the ids, if not given.

        Raises ValueError where either is out of range.
        """
        weight = weight_of(weight)
        usual = sizes(*weight.shape)
        basis = _directions(weight, check_count("rank", usual[0] if rank is None else rank, weight.shape[1], "columns"))
        preview = torch.cat([part.double() @ basis.T for part in weight.split(1 << 14)])
        shelf = Shelf()
        basis, preview = (shelf.moved(part.to(weight.dtype)) for part in (basis, preview))
        return cls(fused(norm), weight, basis, preview, usual[1] if candidates is None else candidates)

    @property
    def rank(self) -> int:
        """Directions of the preview."""
        return self.basis.shape[0]

    @property
    def rows_scored(self) -> int:
        """Inner products of the full width that cost as much as those of one hidden row, rounded up."""
        return self.rank + self.candidates - (-self.vocab_size * self.rank // self.hidden)

    def find(self, states: Tensor) -> Tensor:
        """Ids [n, candidates] in rising order for normalised rows [n, hidden]."""
        looks = project(project(states, self.basis), self.preview)
        return looks.topk(self.candidates, sorted=False).indices.sort(1).values

    def bytes_read(self, rows: int) -> int:
        """Basis and preview once, the candidates' rows once for each hidden row."""
        return self.basis.nbytes + self.preview.nbytes + rows * self.candidates * self.hidden * self.weight.element_size()

    def with_shortlist(self, candidates: int) -> PreviewHead:
        """This head with another number of candidates; nothing is copied."""
        return replace(self, candidates=candidates)


def sizes(vocab: int, width: int) -> tuple[int, int]:
    """Rank and candidates where none are given."""
    return min(width, -(-width // 64) * 8), -(-vocab // 64)


def _directions(weight: Tensor, rank: int) -> Tensor:
    """The `rank` strongest right singular vectors [rank, hidden] of the weight, strongest first, float64."""
    square = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in weight.split(1 << 14):
        square += part.double().T @ part.double()
    return torch.linalg.eigh(square).eigenvectors[:, -rank:].T.flip(0).contiguous()

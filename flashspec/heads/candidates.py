"""Heads that score a list of candidates exactly; every other id has probability zero and is left to the verifier.

Either one list for all rows: the most frequent ids (FR-Spec, arXiv 2502.14856; VocabTrim, arXiv 2506.22694) or those of the
context (NanoSpec, arXiv 2605.26444). Or one list per row: the best of a low-rank preview of all logits (SVD-softmax, Shim et
al., NeurIPS 2017, section 3), or the hits of a search index of faiss: inverted lists, with product codes or without, or a graph.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.base import HeadFile, Norm, StoredHead, WeightHead, check_count, project, project_blocks, weight_of
from flashspec.heads.cluster import faiss_for
from flashspec.kernels.integers import Shelf
from flashspec.sampling import Scores
from flashspec.typed import at_least, one_of

SIZE, TOP = 2048, 16  # ids of a context, and of a verification that enter it
KINDS = ("ivf", "ivfpq", "hnsw")
SAMPLE = 64  # rows searched for to count what a graph search reads
CANDIDATES, PROBES = 64, 16  # if nothing else is asked for
LINKS, DEPTH = 32, 64  # of a graph's nodes, and nodes that a search keeps in view


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

    def with_plan(self, shortlist: int) -> ShortlistHead:  # type: ignore[override]
        """This head with another number of ids."""
        return ShortlistHead.build(self.weight, self.ranked, self.norm, shortlist)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"ranked": self.ranked.int()}, {"size": len(self.ids)}

    @classmethod
    def restored(cls, file: HeadFile, weight: Tensor, norm: Norm | None) -> ShortlistHead:
        return cls.build(weight, file.numbers("ranked", 1), norm, file.fact("size", int))


@dataclass(frozen=True, eq=False)
class ContextHead(ListedHead):
    """Scores the `shortlist` ids seen last in the prompt, the text so far and the verifier's `top` best guesses.

    Only `learn` changes the list, between rounds, so every exact rule stays exact. Until enough ids were seen, the smallest
    ids fill it, the most frequent ones in a BPE vocabulary. Shapes and addresses never change.
    """

    shortlist: int = SIZE
    top: int = TOP
    ids: Tensor = field(init=False, repr=False)
    rows: Tensor = field(init=False, repr=False)
    seen: Tensor = field(init=False, repr=False)  # when each id was, below 0 where it was not

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, shortlist=1, top=1)
        size, device = min(self.shortlist, self.vocab_size), self.weight.device
        ids = torch.zeros(size, dtype=torch.int64, device=device)
        rows = Shelf().zeros((size, self.hidden), self.weight.dtype, device)
        vars(self).update(shortlist=size, ids=ids, rows=rows, seen=torch.arange(self.vocab_size, device=device))
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
        self.ids.copy_(self.seen.topk(self.shortlist).indices.sort().values)
        torch.index_select(self.weight, 0, self.ids, out=self.rows)


@dataclass(frozen=True, eq=False)
class SoughtHead(WeightHead):
    """Searches `shortlist` ids for every row; where it finds fewer, but at least one, pads with logits of -inf."""

    shortlist: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("shortlist", self.shortlist, self.vocab_size, "ids")

    @abstractmethod
    def find(self, states: Tensor) -> Tensor:
        """Rising ids [n, shortlist] for normalised rows [n, hidden], -1 where there are fewer."""

    def score(self, states: Tensor) -> Scores:
        found = self.find(states)
        ids, off = found.clamp(min=0), found < 0
        off[:, -1] &= ~off.all(1)
        exact = project_blocks(states, self.weight[:, None], ids)[:, :, 0]
        return Scores(ids, exact.masked_fill(off, -torch.inf))


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
        return rank + self.shortlist - (-self.vocab_size * rank // self.hidden)

    def find(self, states: Tensor) -> Tensor:
        looks = project(project(states, self.basis), self.preview)
        return looks.topk(self.shortlist, sorted=False).indices.sort(1).values

    def bytes_read(self, rows: int) -> int:
        exact = rows * self.shortlist * self.hidden * self.weight.element_size()
        return self.basis.nbytes + self.preview.nbytes + exact


def sizes(vocab: int, width: int) -> tuple[int, int]:
    """Rank and number of candidates of a preview."""
    return min(width, -(-width // 64) * 8), -(-vocab // 64)


@dataclass(frozen=True, eq=False)
class IndexHead(SoughtHead):
    """Scores the ids that a search finds; of about 4 sqrt(vocab) inverted lists it searches `probes`."""

    kind: str
    index: Any
    probes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("probes", self.probes, self.lists, "lists of this index")

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None, kind: str = "ivf") -> IndexHead:
        """Index weight [vocab, hidden] by "ivf", "ivfpq" or "hnsw"; ValueError where faiss is missing."""
        weight, index = weight_of(weight), _indexed(kind, weight)
        return cls(norm, weight, min(CANDIDATES, len(weight)), kind, index, min(PROBES, getattr(index, "nlist", 1)))

    @property
    def lists(self) -> int:
        """Inverted lists; a graph counts as one."""
        return getattr(self.index, "nlist", 1)

    @property
    def rows_scored(self) -> int:
        """Vectors compared per hidden row, short codes included, and rows scored exactly."""
        return self.visited + self.shortlist

    def find(self, states: Tensor) -> Tensor:
        faiss = faiss_for(f"head {self.kind!r}")
        if self.kind == "hnsw":
            limits = faiss.SearchParametersHNSW(efSearch=max(DEPTH, self.shortlist))
        else:
            limits = faiss.SearchParametersIVF(nprobe=self.probes)
        rows = states.float().cpu().contiguous().numpy()
        each = (rows[i : i + 1] for i in range(len(rows)))  # a row's candidates never depend on its neighbours
        found = [self.index.search(row, self.shortlist, params=limits)[1] for row in each]
        return torch.cat([torch.from_numpy(ids) for ids in found]).sort(1).values.to(states.device)

    @cached_property
    def visited(self) -> int:
        """Vectors that one search compares: an even share of the lists and their centres; for a graph, counted."""
        if self.kind != "hnsw":
            return self.lists + -(-self.vocab_size * self.probes // self.lists)
        statistics = faiss_for("head 'hnsw'").cvar.hnsw_stats
        statistics.reset()
        sample = self.weight[:: max(1, self.vocab_size // SAMPLE)][:SAMPLE]
        self.find(sample)
        return -(-int(statistics.ndis) // len(sample))

    def bytes_read(self, rows: int) -> int:
        exact = self.shortlist * self.hidden * self.weight.element_size()
        if self.kind != "ivfpq":
            return rows * (4 * self.visited * self.hidden + exact)
        return rows * (4 * self.lists * self.hidden + (self.visited - self.lists) * self.index.code_size + exact)


def usable(names: Collection[str]) -> list[str]:
    """These heads without those that need a missing faiss; a warning says which, and what to install."""
    left = [name for name in names if name in KINDS] if importlib.util.find_spec("faiss") is None else []
    for name in left:
        warnings.warn(f"left out: head {name!r} needs faiss-cpu; install the extra `ann`", stacklevel=2)
    return [name for name in names if name not in left]


def _indexed(kind: str, weight: Tensor) -> Any:
    """All rows in an index, filled on one thread: a graph's links depend on the order in which points come."""
    one_of("kind", kind, KINDS)
    faiss, (vocab, width) = faiss_for(f"head {kind!r}"), weight.shape
    lists = f"IVF{min(vocab, math.isqrt(16 * vocab))}"
    parts = next(n for n in range(max(1, width // 8), 0, -1) if width % n == 0)
    codes = f"PQ{parts}x{min(8, max(1, vocab.bit_length() - 2))}np"
    names = {"ivf": f"{lists},Flat", "ivfpq": f"{lists},{codes}", "hnsw": f"HNSW{LINKS}"}
    index = faiss.index_factory(width, names[kind], faiss.METRIC_INNER_PRODUCT)
    for trained in (index, getattr(index, "pq", index)):
        if hasattr(trained, "cp"):
            trained.cp.seed, trained.cp.min_points_per_centroid = 0, 1
    points, threads = weight.float().cpu().numpy(), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(points)
        index.add(points)
    finally:
        faiss.omp_set_num_threads(threads)
    return index

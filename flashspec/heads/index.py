"""Search indexes of faiss as draft heads: inverted lists, the same with product codes, and a navigable graph."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_count, weight_of
from flashspec.heads.candidates import SoughtHead
from flashspec.heads.cluster import faiss_for

KINDS = ("ivf", "ivfpq", "hnsw")
SAMPLE = 64  # rows searched for to count what a graph search reads
CANDIDATES, PROBES = 64, 16  # if nothing else is asked for
LINKS, DEPTH = 32, 64  # of a graph's nodes, and nodes that a search keeps in view


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
        return self.visited + self.candidates

    def find(self, states: Tensor) -> Tensor:
        faiss = faiss_for(f"head {self.kind!r}")
        if self.kind == "hnsw":
            limits = faiss.SearchParametersHNSW(efSearch=max(DEPTH, self.candidates))
        else:
            limits = faiss.SearchParametersIVF(nprobe=self.probes)
        rows = states.float().cpu().contiguous().numpy()
        each = (rows[i : i + 1] for i in range(len(rows)))  # a row's candidates never depend on its neighbours
        found = [self.index.search(row, self.candidates, params=limits)[1] for row in each]
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
        exact = self.candidates * self.hidden * self.weight.element_size()
        if self.kind != "ivfpq":
            return rows * (4 * self.visited * self.hidden + exact)
        return rows * (4 * self.lists * self.hidden + (self.visited - self.lists) * self.index.code_size + exact)

    def with_probes(self, probes: int) -> IndexHead:
        """This head searching another number of lists; the index stays."""
        return replace(self, probes=probes)


def usable(names: Collection[str]) -> list[str]:
    """These heads without those that need a missing faiss; a warning says which, and what to install."""
    left = [name for name in names if name in KINDS] if importlib.util.find_spec("faiss") is None else []
    for name in left:
        warnings.warn(f"left out: head {name!r} needs faiss-cpu; install the extra `ann`", stacklevel=2)
    return [name for name in names if name not in left]


def _indexed(kind: str, weight: Tensor) -> Any:
    """All rows in an index, filled on one thread: a graph's links depend on the order in which points come."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
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

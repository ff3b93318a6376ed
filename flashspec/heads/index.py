"""Search indexes of faiss as draft heads: inverted lists, the same with product codes, and a navigable graph.

The index names candidates by inner product and their logits are computed exactly, from the model's own rows. Searching runs
on the CPU, one row at a time, so that a row's candidates never depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_count, fused, rescore, weight_of
from flashspec.heads.candidates import SearchHead
from flashspec.heads.storage import fact, load_state, save_state, stored
from flashspec.sampling import Dice, Scores
from flashspec.theory.checks import at_least

KINDS = ("ivf", "ivfpq", "hnsw")
KEY = "index_head"
SAMPLE = 64  # rows searched for to count what a graph search reads


@dataclass(frozen=True)
class IndexPlan:
    """How ids are indexed and searched: `kind` "ivf", "ivfpq" or "hnsw", and `candidates` (None: 64) then scored exactly.

    Inverted lists: `lists` of them (None: about four times the square root of the vocabulary), of which `probes` (None: 16)
    are searched. A graph: `links` a node, and a search that keeps `depth` nodes in view.
    """

    kind: str = "ivf"
    candidates: int | None = None
    lists: int | None = None
    probes: int | None = None
    links: int = 32
    depth: int = 64
    seed: int = 0

    def resolve(self, vocab: int) -> IndexPlan:
        """This plan for so many ids, counts filled in; ValueError where it asks for what there is not."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        at_least(self, links=1, depth=1)
        lists = check_count("lists", min(vocab, math.isqrt(16 * vocab)) if self.lists is None else self.lists, vocab, "ids")
        probes = check_count("probes", min(16, lists) if self.probes is None else self.probes, lists, "lists of this index")
        candidates = min(64, vocab) if self.candidates is None else self.candidates
        return replace(self, lists=lists, probes=probes, candidates=check_count("candidates", candidates, vocab, "ids"))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Lists, probes and candidates of a resolved plan."""
        assert self.lists is not None and self.probes is not None and self.candidates is not None
        return self.lists, self.probes, self.candidates


@dataclass(frozen=True, eq=False)
class IndexHead(SearchHead):
    """Lists the ids that a search finds, padded with logits of -inf where it finds fewer than `candidates`; at least id 0."""

    norm: Norm
    weight: Tensor
    plan: IndexPlan
    index: Any

    @classmethod
    def build(cls, weight: Tensor, norm: Norm | None = None, plan: IndexPlan = IndexPlan(), **changes: Any) -> IndexHead:
        """Index weight [vocab, hidden]; `changes` are fields of IndexPlan. ValueError where faiss is missing."""
        faiss, weight = faiss_for(changes.get("kind", plan.kind)), weight_of(weight)
        plan = replace(plan, **changes).resolve(weight.shape[0])
        index = _empty(faiss, plan, weight)
        _fill(faiss, index, weight)
        return cls(fused(norm), weight, plan, index)

    @property
    def rows_scored(self) -> int:
        """Vectors compared for each hidden row, short codes included, and rows scored exactly."""
        return self.visited + self.plan.counts[2]

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, candidates] of rows [n, hidden]."""
        states = self.states(rows)
        found = self.find(states)
        logits = rescore(states, self.weight, found.clamp(min=0))
        off = found < 0
        off[:, -1] &= ~off.all(1)
        return Scores(found.clamp(min=0), logits.masked_fill(off, -torch.inf))

    def find(self, states: Tensor) -> Tensor:
        """Ids [n, candidates] in rising order for normalised rows [n, hidden], -1 before them where there are fewer."""
        faiss, (_, probes, wanted) = faiss_for(self.plan.kind), self.plan.counts
        if self.plan.kind == "hnsw":
            limits = faiss.SearchParametersHNSW(efSearch=max(self.plan.depth, wanted))
        else:
            limits = faiss.SearchParametersIVF(nprobe=probes)
        rows = states.float().cpu().contiguous().numpy()
        found = [self.index.search(rows[i : i + 1], wanted, params=limits)[1] for i in range(len(rows))]
        return torch.cat([torch.from_numpy(ids) for ids in found]).sort(1).values.to(states.device)

    @cached_property
    def visited(self) -> int:
        """Vectors one search compares: an even share of the lists and their centres, or as many as graph searches did here."""
        if self.plan.kind != "hnsw":
            lists, probes, _ = self.plan.counts
            return lists + -(-self.vocab_size * probes // lists)
        statistics = faiss_for("hnsw").cvar.hnsw_stats
        statistics.reset()
        sample = self.weight[:: max(1, self.vocab_size // SAMPLE)][:SAMPLE]
        self.find(sample)
        return -(-int(statistics.ndis) // len(sample))

    def bytes_read(self, rows: int) -> int:
        """For each hidden row: the vectors or codes that its search compares, and the candidates' own rows."""
        lists, _, candidates = self.plan.counts
        exact = candidates * self.hidden * self.weight.element_size()
        if self.plan.kind != "ivfpq":
            return rows * (4 * self.visited * self.hidden + exact)
        return rows * (4 * lists * self.hidden + (self.visited - lists) * self.index.code_size + exact)

    def with_shortlist(self, candidates: int) -> IndexHead:
        """This head with another number of candidates; the index stays."""
        return replace(self, plan=replace(self.plan, candidates=candidates).resolve(self.vocab_size))

    def with_probes(self, probes: int) -> IndexHead:
        """This head searching another number of lists; the index stays."""
        return replace(self, plan=replace(self.plan, probes=probes).resolve(self.vocab_size))

    def save(self, path: Path | str) -> None:
        """Write the index and the plan (not the weight) to a safetensors file."""
        found = faiss_for(self.plan.kind).serialize_index(self.index)
        facts = {"plan": asdict(self.plan), "index_sha256": hashlib.sha256(found.data).hexdigest()}
        save_state(Path(path), KEY, self.weight, {"index": torch.from_numpy(found)}, facts)

    @classmethod
    def load(cls, path: Path | str, weight: Tensor, norm: Norm | None = None) -> IndexHead:
        """Read what `save` wrote for this weight; ValueError where it is another one."""
        tensors, facts = load_state(Path(path), KEY, weight)
        plan = fact(facts, "plan", IndexPlan, Path(path)).resolve(len(weight))
        found = stored(tensors, "index", 1, Path(path)).numpy()
        if facts.get("index_sha256") != hashlib.sha256(found.data).hexdigest():  # faiss itself crashes on damaged ones
            raise ValueError(f"{path} holds an index without its digest, or a damaged one; build the head again")
        return cls(fused(norm), weight_of(weight), plan, faiss_for(plan.kind).deserialize_index(found))


def faiss_for(kind: str) -> Any:
    """The faiss module; ValueError naming the extra to install where it is missing."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ValueError(f"head {kind!r} needs faiss-cpu; install the extra `ann`, or use a FlashHead") from None


def usable(names: Iterable[str]) -> list[str]:
    """These heads without those that search with faiss where it is missing; a warning says which, and what to install."""
    found = []
    for name in names:
        try:
            if name in KINDS:
                faiss_for(name)
            found.append(name)
        except ValueError as missing:
            warnings.warn(f"left out: {missing}", stacklevel=2)
    return found


def _empty(faiss: Any, plan: IndexPlan, weight: Tensor) -> Any:
    """An untrained index."""
    vocab, width = weight.shape
    if plan.kind == "hnsw":
        return faiss.IndexHNSWFlat(width, plan.links, faiss.METRIC_INNER_PRODUCT)
    centres = faiss.IndexFlatIP(width)
    if plan.kind == "ivf":
        index = faiss.IndexIVFFlat(centres, width, plan.lists, faiss.METRIC_INNER_PRODUCT)
    else:
        parts = next(n for n in range(max(1, width // 8), 0, -1) if width % n == 0)
        bits = min(8, max(1, vocab.bit_length() - 2))
        index = faiss.IndexIVFPQ(centres, width, plan.lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = plan.seed, 1
    index.cp.seed, index.cp.min_points_per_centroid = plan.seed, 1
    return index


def _fill(faiss: Any, index: Any, weight: Tensor) -> None:
    """Put all rows in, on one thread: a graph's links depend on the order in which points come."""
    points, threads = weight.float().cpu().numpy(), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(points)
        index.add(points)
    finally:
        faiss.omp_set_num_threads(threads)

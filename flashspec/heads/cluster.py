"""Clusters of the rows of a vocabulary weight, all of exactly the same size.

FlashHead (arXiv 2603.14591) clusters by direction and fixes the size, so that a probe is one contiguous block. Query-aware
clusters share ids whose scores are alike on hidden rows that the model produced.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from flashspec.heads.base import Norm, check_rows, fused, project
from flashspec.kernels import Packed
from flashspec.typed import at_least, one_of, typed

LLOYD, BALANCED = 12, 4  # iterations without and with the size constraint
CHUNK_SCORES = 1 << 24  # scores held at once: 64 MiB of float32
SHORTLIST = 32  # clusters a point bids for before a longer list is drawn up
ROUNDS, TURNS = 3, 4  # balanced Lloyd rounds behind the bisection; turns of two means at a cut
NARROW = 256  # directions in which queries differ most; rows are compared in these
RARE = 1e-7  # added to an id's probability, so that ids that never come count too
ALWAYS, SPARSE = 512, 128  # ids that are always scored, at most, and at most one in so many
AT_ONCE = 1 << 26  # numbers gathered at once


@typed
@dataclass(frozen=True)
class Recipe:
    """How rows are clustered; the backend "auto" is faiss for rows on the CPU where it is installed."""

    cluster_size: int = 16
    seed: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        at_least(self, cluster_size=1)
        one_of("backend", self.backend, ("auto", "faiss", "torch"))


@dataclass(frozen=True)
class Clusters:
    """A partition of the ids 0..V-1 into K clusters of `size` slots; ValueError where one holds more.

    `assignments` [V] gives each id's cluster; `centroids` [K, D] are float32: for a `spherical` clustering the mean of the
    members' unit rows times the mean of their lengths, else the plain mean of the rows.
    """

    assignments: Tensor
    size: int
    centroids: Tensor
    spherical: bool = True
    members: Tensor = field(init=False, repr=False)  # [K, size]: every cluster's ids in rising order, then -1

    def __post_init__(self) -> None:
        count = -(-len(self.assignments) // self.size)
        filled = torch.bincount(self.assignments, minlength=count).tolist()
        most = max(filled)
        if len(filled) > count or most > self.size:
            raise ValueError(f"{count} clusters of {self.size} expected, but one of {len(filled)} clusters holds {most} ids")
        ids = self.assignments.argsort(stable=True).split(filled)
        members = pad_sequence(list(ids), batch_first=True, padding_value=-1)
        vars(self).update(members=F.pad(members, (0, self.size - most), value=-1))

    @property
    def count(self) -> int:
        """Clusters, K."""
        return self.members.shape[0]


def cluster(weight: Tensor, recipe: Recipe = Recipe()) -> Clusters:
    """Cluster the rows of weight [V, D]. Raises ValueError where V < cluster_size or a weight is not finite."""
    refuse_weight(weight, recipe.cluster_size)
    return balanced(weight, unconstrained(weight, recipe), recipe)


def passes(count: int) -> Iterable[int]:
    """The numbers of a clustering's passes, with a progress bar if they take long."""
    return tqdm(range(count), desc="clustering", unit="pass", delay=2, leave=False)


def refuse_weight(weight: Tensor, cluster_size: int) -> None:
    """ValueError for a weight [V, D] that has no clusters of this size."""
    if weight.shape[0] < cluster_size:
        raise ValueError(f"cluster_size {cluster_size} exceeds the vocabulary of {weight.shape[0]}; choose a smaller one")
    if not bool(torch.isfinite(weight.sum(dtype=torch.float64))):
        raise ValueError("the head weight holds NaN or infinite values; load the checkpoint again")


@torch.no_grad()
def unconstrained(weight: Tensor, recipe: Recipe) -> Tensor:
    """First half of `cluster`: unit centroids after the Lloyd iterations."""
    points, dice = F.normalize(weight.detach().float(), dim=1), torch.Generator().manual_seed(recipe.seed)
    first = torch.randperm(len(points), generator=dice)[: -(-len(points) // recipe.cluster_size)]
    centroids = F.normalize(points[first.to(points.device)], dim=1)
    served = points.device.type == "cpu" and importlib.util.find_spec("faiss") is not None
    wanted = recipe.backend == "faiss" or (recipe.backend == "auto" and served)
    faiss = faiss_for("backend 'faiss'") if wanted else None
    for number in passes(LLOYD):
        if faiss is None:
            centroids = centres(points, nearest(points, centroids), centroids)
            continue
        limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
        size, seed = (points.shape[1], len(centroids)), recipe.seed + number
        means = faiss.Kmeans(*size, niter=1, spherical=True, seed=seed, **limits)  # splits a cluster for an empty one
        means.train(points.contiguous().numpy(), init_centroids=centroids.contiguous().numpy())
        centroids = F.normalize(torch.tensor(means.centroids), dim=1)
    return centroids


@torch.no_grad()
def balanced(weight: Tensor, centroids: Tensor, recipe: Recipe) -> Clusters:
    """Second half of `cluster`: clusters of one size, from the centroids of `unconstrained`."""
    points, size = F.normalize(weight.detach().float(), dim=1), recipe.cluster_size
    for _ in passes(BALANCED):
        assignments = assign_balanced(points, centroids, size)
        centroids = centres(points, assignments, centroids)
    return from_assignments(weight, assignments, size)


def from_assignments(weight: Tensor, assignments: Tensor, size: int) -> Clusters:
    """Clusters of weight [V, D] with these assignments [V]; ValueError for a cluster over `size`."""
    rows = weight.detach().float()
    lengths = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    shares = torch.ones(len(rows), device=rows.device)
    units, reach = (means_of(part, assignments, shares) for part in (rows / lengths, lengths))
    return Clusters(assignments, size, units * reach)  # the few long rows would turn a plain mean


def means_of(points: Tensor, assignments: Tensor, shares: Tensor) -> Tensor:
    """The mean of every cluster's points [V, d], weighted by `share`."""
    total = torch.bincount(assignments, shares)
    sums = torch.zeros(len(total), points.shape[1], device=points.device)
    return sums.index_add_(0, assignments, points * shares[:, None]) / total[:, None]


def centres(points: Tensor, assignments: Tensor, before: Tensor) -> Tensor:
    """Centroid of every cluster's points; unchanged for a cluster that is empty or whose points cancel."""
    sums = torch.zeros_like(before).index_add_(0, assignments, points)
    alive = sums.square().sum(1, keepdim=True) > 0
    return torch.where(alive, F.normalize(sums, dim=1), before)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The centroid with the highest inner product, for every point [V]; memory stays bounded."""
    return torch.cat([(part @ centroids.T).argmax(1) for part in chunks(points, len(centroids))])


def faiss_for(user: str) -> Any:
    """The faiss module; ValueError with the extra to install where it is missing."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ValueError(f"{user} needs faiss-cpu; install the extra `ann`, or use a FlashHead of the backend 'torch'") from None


def chunks(points: Tensor, width: int) -> Iterator[Tensor]:
    """Points [V, D] in pieces whose scores against `width` others fit a fixed amount of memory."""
    return iter(points.split(max(1, CHUNK_SCORES // max(1, width))))


def assign_balanced(points: Tensor, centroids: Tensor, size: int) -> Tensor:
    """Clusters [V] of points [V, D] around centroids [K, D], at most `size` in each; K * size must be at least V.

    A capacity auction: in every round each waiting point bids its inner product on the best cluster with free slots, and
    the cluster takes its highest bidders; so every round places at least one point.
    """
    free = torch.full((len(centroids),), size, dtype=torch.int64, device=points.device)
    placed = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    waiting, length = torch.arange(len(points), device=points.device), SHORTLIST
    while len(waiting):
        still_open = free.nonzero()[:, 0]
        most = min(length, max(SHORTLIST, CHUNK_SCORES // len(waiting)), len(still_open))
        found = [(part @ centroids[still_open].T).topk(most) for part in chunks(points[waiting], len(still_open))]
        bids, lists = torch.cat([f.values for f in found]), still_open[torch.cat([f.indices for f in found])]
        won = _auction(bids, lists, free)
        placed[waiting] = won
        waiting, length = waiting[won < 0], 2 * length
    return placed


def _auction(bids: Tensor, lists: Tensor, free: Tensor) -> Tensor:
    """Clusters [n] won with shortlists of bids, best first; -1 where a whole shortlist filled up. `free` decreases."""
    won = torch.full((len(bids),), -1, dtype=torch.int64, device=bids.device)
    waiting = torch.arange(len(bids), device=bids.device)
    while len(waiting):
        value, choice = bids[waiting].where(free[lists[waiting]] > 0, -torch.inf).max(1)
        able = value > -torch.inf
        waiting, value = waiting[able], value[able]
        wanted = lists[waiting].gather(1, choice[able, None])[:, 0]
        taken = _highest(wanted, value, free)
        won[waiting[taken]] = wanted[taken]
        free -= torch.bincount(wanted[taken], minlength=len(free))
        waiting = waiting[~taken]
    return won


def _highest(wanted: Tensor, value: Tensor, free: Tensor) -> Tensor:
    """Which bids [n] win: the highest for each cluster, as many as it has slots; earlier points win ties."""
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(wanted[order], stable=True)]
    filled = torch.bincount(wanted, minlength=len(free))
    rank = torch.arange(len(order), device=order.device) - (filled.cumsum(0) - filled)[wanted[order]]
    taken = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    taken[order] = rank < free[wanted[order]]
    return taken


class Asked(NamedTuple):
    """Queries for a head: states [n, D] after the norm, and every id's mean probability [V] over them."""

    states: Tensor
    likely: Tensor

    @property
    def always(self) -> tuple[int, ...]:
        """The likeliest ids, best first: up to 512, fewer for a vocabulary below 65,536."""
        count = min(ALWAYS, len(self.likely) // SPARSE)
        return tuple(self.likely.argsort(descending=True, stable=True)[:count].tolist())


@torch.no_grad()
def asked_of(weight: Tensor | Packed, queries: Tensor, norm: Norm | None) -> Asked:
    """The queries of rows [n, D] before the norm; ValueError for no rows, another width or NaN."""
    check_rows(queries, weight.shape[1])
    ready = fused(norm)
    states = queries.float() if ready is None else ready(queries.float())
    if not len(states) or not bool(torch.isfinite(states).all()):
        raise ValueError(f"queries are finite hidden rows of the model, at least one; these {len(states)} are not")
    likely = torch.zeros(weight.shape[0], device=states.device)
    for part in states.split(256):
        likely += project(part, weight).softmax(1).sum(0)
    return Asked(states, likely / len(states))


@torch.no_grad()
def cluster_for(weight: Tensor, asked: Asked, recipe: Recipe) -> Clusters:
    """Clusters of the rows of weight [V, D] for these queries, by size and seed; ValueError as `cluster`.

    In a mean, a row counts by the fourth root of its id's probability.
    """
    refuse_weight(weight, recipe.cluster_size)
    size, rows, shares = recipe.cluster_size, weight.float(), (asked.likely + RARE).pow(0.25)
    values, vectors = torch.linalg.eigh(asked.states.T @ asked.states / len(asked.states))
    points = rows @ (vectors * values.clamp(min=0).sqrt())[:, -NARROW:]  # by a root of the second moment of what is asked
    assignments = bisected(points, size, recipe.seed)
    for _ in passes(ROUNDS):
        means = means_of(points, assignments, shares)
        lifted = torch.cat((means, -means.square().sum(1, keepdim=True) / 2), 1)  # the nearest mean has the highest score
        ones = torch.cat((points, torch.ones(len(points), 1, device=points.device)), 1)
        assignments = assign_balanced(ones, lifted, size)
    return Clusters(assignments, size, means_of(rows, assignments, shares), spherical=False)


def bisected(points: Tensor, size: int, seed: int = 0) -> Tensor:
    """Assign points [V, D] to clusters of `size` by halving repeatedly along the axis between two means."""
    dice = torch.Generator(points.device).manual_seed(seed)
    groups = {len(points): torch.arange(len(points), device=points.device)[None]}
    while max(groups) > size:
        halves: dict[int, list[Tensor]] = {}
        for length, group in groups.items():
            left = -(-length // size) // 2 * size
            ordered = group if length <= size else _sorted(points, group, left, dice)
            for part in (ordered[:, :left], ordered[:, left:]) if left else (ordered,):
                halves.setdefault(part.shape[1], []).append(part)
        groups = {length: torch.cat(parts) for length, parts in halves.items()}
    assignments, number = torch.empty(len(points), dtype=torch.int64, device=points.device), 0
    for group in groups.values():
        numbers = torch.arange(number, number + len(group), device=points.device)
        assignments[group] = numbers[:, None].expand_as(group)
        number += len(group)
    return assignments


def _sorted(points: Tensor, groups: Tensor, left: int, dice: torch.Generator) -> Tensor:
    """Ids [groups, length], each group along its own axis, the first `left` of them on one side."""
    some = max(AT_ONCE // (groups.shape[1] * points.shape[1]), 1)
    found = []
    for group in groups.split(some):
        rows = points[group]
        axis = torch.randn(len(group), points.shape[1], 1, generator=dice, device=points.device)
        for _ in range(TURNS):
            order = (rows @ axis)[:, :, 0].argsort(1)
            side = torch.zeros(order.shape, device=points.device).scatter_(1, order[:, :left], 1.0)[:, None]
            axis = ((side @ rows) / left - ((1 - side) @ rows) / (order.shape[1] - left)).transpose(1, 2)
        found.append(group.gather(1, (rows @ axis)[:, :, 0].argsort(1, descending=True)))
    return torch.cat(found)

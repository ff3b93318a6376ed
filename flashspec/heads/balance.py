"""Assignment of points to clusters of one fixed size by a capacity auction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_SCORES = 1 << 24  # scores held at once: 64 MiB of float32
SHORTLIST = 32  # clusters a point bids for before a longer list is drawn up


def chunks(points: Tensor, width: int) -> Iterator[Tensor]:
    """Points [V, D] in pieces whose scores against `width` others stay within a fixed amount of memory."""
    return iter(points.split(max(1, CHUNK_SCORES // max(1, width))))


def assign_balanced(points: Tensor, centroids: Tensor, size: int) -> Tensor:
    """Assign points [V, D] to centroids [K, D] so that no cluster holds more than `size`; K * size must be at least V.

    Returns clusters [V]. A capacity auction: in every round each waiting point bids its inner product to the best
    cluster that still has room, which takes its highest bidders; so every round places a point.
    """
    free = torch.full((len(centroids),), size, dtype=torch.int64, device=points.device)
    placed = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    waiting, length = torch.arange(len(points), device=points.device), SHORTLIST
    while len(waiting):
        most = min(length, max(SHORTLIST, CHUNK_SCORES // len(waiting)))
        won = _auction(*_shortlists(points[waiting], centroids, free, most), free)
        placed[waiting] = won
        waiting, length = waiting[won < 0], 2 * length
    return placed


def _shortlists(points: Tensor, centroids: Tensor, free: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Best `length` (or fewer) open clusters of points: scores and numbers, best first."""
    still_open = free.nonzero()[:, 0]
    width = len(still_open)
    found = [(part @ centroids[still_open].T).topk(min(length, width)) for part in chunks(points, width)]
    return torch.cat([f.values for f in found]), still_open[torch.cat([f.indices for f in found])]


def _auction(bids: Tensor, lists: Tensor, free: Tensor) -> Tensor:
    """Clusters [n] won with these shortlists, -1 where all of them filled up; `free` falls as slots go."""
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
    """Which bids [n] win: the highest of each wanted cluster, as many as it has room for; earlier points in a tie."""
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(wanted[order], stable=True)]
    filled = torch.bincount(wanted, minlength=len(free))
    rank = torch.arange(len(order), device=order.device) - (filled.cumsum(0) - filled)[wanted[order]]
    taken = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    taken[order] = rank < free[wanted[order]]
    return taken

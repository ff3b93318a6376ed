"""Clusters that know their queries: ids lie together whose scores on real hidden rows are alike.

FlashHead (arXiv 2603.14591) clusters rows by direction. Here the distance of two rows is that of their scores over a
model's own hidden rows, and a cluster is found by the plain mean of its rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashspec.heads.balance import assign_balanced
from flashspec.heads.base import project
from flashspec.heads.cluster import Clusters, Recipe, members_of, refuse_weight
from flashspec.kernels import Packed

ROUNDS, TURNS = 2, 4  # balanced Lloyd rounds behind the bisection; turns of two means at a cut
AT_ONCE = 1 << 26  # numbers gathered at once
ALWAYS = 512


@torch.no_grad()
def cluster_for(weight: Tensor, queries: Tensor, recipe: Recipe) -> Clusters:
    """Clusters of the rows of weight [V, D] for queries [n, D] behind the final norm: of `cluster_size` slots, and fewer than
    that many are free.

    The recipe's backend and iterations are those of spherical clusters. Raises ValueError as `cluster` and `checked`.
    """
    from tqdm import tqdm

    refuse_weight(weight, recipe.cluster_size)
    queries, size, rows = checked(queries, weight.shape[1]), recipe.cluster_size, weight.float()
    with tqdm(total=1 + ROUNDS, desc="clustering", unit="pass", delay=2, leave=False) as bar:
        points = rows @ _metric(queries)
        assignments = bisected(points, size, recipe.seed)
        bar.update()
        for _ in range(ROUNDS):
            means = means_of(points, assignments, size)
            lifted = torch.cat((means, -means.square().sum(1, keepdim=True) / 2), 1)  # the nearest mean has the highest score
            ones = torch.cat((points, torch.ones(len(points), 1, device=points.device)), 1)
            assignments = assign_balanced(ones, lifted, size)
            bar.update()
    count = -(-len(rows) // size)
    return Clusters(assignments, members_of(assignments, count, size), means_of(rows, assignments, size), spherical=False)


def checked(queries: Tensor, width: int) -> Tensor:
    """Queries [n, width] in float32; ValueError in words for none, another width, and numbers that are not finite."""
    if queries.ndim != 2 or not len(queries) or queries.shape[1] != width:
        raise ValueError(f"queries are hidden rows [n, {width}], at least one, got {list(queries.shape)}; use the model's own")
    if not bool(torch.isfinite(queries).all()):
        raise ValueError("queries hold NaN or infinite values; let the model write them again")
    return queries.float()


def _metric(queries: Tensor) -> Tensor:
    """A root [D, D] of the queries' second moment."""
    values, vectors = torch.linalg.eigh(queries.T @ queries / len(queries))
    return vectors * values.clamp(min=0).sqrt()


def means_of(points: Tensor, assignments: Tensor, size: int) -> Tensor:
    """The mean of every cluster's points."""
    count = -(-len(points) // size)
    sums = torch.zeros(count, points.shape[1], device=points.device).index_add_(0, assignments, points)
    return sums / torch.bincount(assignments, minlength=count).clamp(min=1)[:, None]


def bisected(points: Tensor, size: int, seed: int = 0) -> Tensor:
    """Assign points [V, D] to clusters of `size` by halving: along the axis between two means, at the middle, and on."""
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


def frequent(weight: Tensor | Packed, queries: Tensor, count: int = ALWAYS) -> tuple[int, ...]:
    """Up to `count` ids that are most often the best of queries [n, D], most often first."""
    best = torch.cat([project(part, weight).argmax(1) for part in queries.split(256)])
    often = torch.bincount(best, minlength=weight.shape[0])
    order = often.argsort(descending=True, stable=True)[:count]
    return tuple(order[often[order] > 0].tolist())

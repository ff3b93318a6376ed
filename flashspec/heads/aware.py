"""Query-aware clusters: ids share a cluster if their scores are alike on hidden rows that the model produced."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_rows, fused, project
from flashspec.heads.cluster import Clusters, Recipe, assign_balanced, means_of, members_of, passes, refuse_weight
from flashspec.kernels import Packed

ROUNDS, TURNS = 3, 4  # balanced Lloyd rounds behind the bisection; turns of two means at a cut
NARROW = 256  # directions in which queries differ most; rows are compared in these
RARE = 1e-7  # added to an id's probability, so that ids that never come count too
ALWAYS, SPARSE = 512, 128  # ids that are always scored, at most, and at most one in so many
AT_ONCE = 1 << 26  # numbers gathered at once


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
    members = members_of(assignments, -(-len(rows) // size), size)
    return Clusters(assignments, members, means_of(rows, assignments, shares), spherical=False)


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

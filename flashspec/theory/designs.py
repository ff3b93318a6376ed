"""Of all depths and sizes, the draft whose predicted throughput is the highest, by relations fitted to drafts that were built.

Yan et al. 2024 (Decoding Speculative Decoding, section 5) choose a draft on the same grounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from flashspec.theory.checks import check_positive
from flashspec.theory.rounds import Costs, throughput, tokens_per_check

FEWEST = 4
EDGE = 1e-3


class Optimum(NamedTuple):
    """A draft by layers and body parameters, the block it is best at, and the throughput predicted for it."""

    layers: int
    body: float
    block: int
    throughput: float


class Relation(NamedTuple):
    """A plane over depth and body ("plain"), or of a share's logit over their logarithms ("share")."""

    coefficients: tuple[float, ...]
    link: str

    def __call__(self, layers: float, body: float) -> float:
        """The quantity of a draft of this many layers and body parameters."""
        value = float(np.dot(self.coefficients, _features(layers, body, self.link)))
        return 1.0 / (1.0 + math.exp(-value)) if self.link == "share" else max(0.0, value)


def _features(layers: float, body: float, link: str) -> list[float]:
    place = check_positive("layers", layers), check_positive("body", body)
    return [1.0, *map(math.log, place)] if link == "share" else [1.0, *place]


def fitted(points: Sequence[tuple[float, float, float]], link: str = "plain") -> Relation:
    """The least-squares plane through (layers, body, value), such as seconds, or ("share") acceptance rates.

    Raises ValueError for fewer than FEWEST points, or for points that do not span a plane.
    """
    if len(points) < FEWEST:
        raise ValueError(f"a relation over depth and size needs at least {FEWEST} drafts, got {len(points)}; measure more")
    rows = np.array([_features(layers, body, link) for layers, body, _ in points])
    scale = np.abs(rows).max(axis=0).clip(min=1.0)
    if np.linalg.matrix_rank(rows / scale, tol=1e-6) < rows.shape[1]:
        raise ValueError("the drafts do not span depth and size: add one that is deeper at the same size, or larger")
    values = np.array([value for _, _, value in points])
    if link == "share":
        inside = values.clip(EDGE, 1.0 - EDGE)
        values = np.log(inside / (1.0 - inside))
    found = np.linalg.lstsq(rows / scale, values, rcond=None)[0] / scale
    return Relation(tuple(found.tolist()), link)


def predicted(
    draft: Mapping[int, Relation], acceptance: Mapping[int, Relation], check: Callable[[int], float], layers: int, body: float
) -> Optimum:
    """One draft at its best block, by the seconds of a burst, acceptance and a check at each block."""
    found = []
    for block, alpha in acceptance.items():
        costs = Costs(draft[block](layers, body) / block, check(block))
        rate = throughput(tokens_per_check(alpha(layers, body), block), costs, block)
        found.append(Optimum(layers, body, block, rate))
    return max(found, key=lambda one: one.throughput)


def best_design(
    draft: Mapping[int, Relation],
    acceptance: Mapping[int, Relation],
    check: Callable[[int], float],
    layers: Sequence[int],
    bodies: Sequence[float],
) -> Optimum:
    """The fastest predicted draft of the grid `layers` x `bodies`; ValueError for an empty grid.

    Keep the grid inside what was measured: a plane says nothing about drafts beyond it.
    """
    if not layers or not bodies or not acceptance:
        raise ValueError("the optimiser needs at least one depth, one size and one block")
    found = (predicted(draft, acceptance, check, *place) for place in product(layers, bodies))
    return max(found, key=lambda one: one.throughput)

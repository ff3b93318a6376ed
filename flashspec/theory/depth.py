"""What depth does to a hierarchy: exits stay at their shares of a model that grows, layers and heads keep their prices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flashspec.theory.nested import Level, nested


class Prices(NamedTuple):
    """Time of one layer and of one head for a call, and for each row of it."""

    layer: float
    layer_row: float
    head: float
    head_row: float

    def action(self, span: float, rows: float) -> float:
        """Time of reading rows through so many layers and scoring each."""
        return span * (self.layer + self.layer_row * rows) + self.head + self.head_row * rows


class Tiers(NamedTuple):
    """A hierarchy over one model: its exits as shares of the depth, and of every level its acceptance and burst."""

    exits: tuple[float, ...]
    alphas: tuple[float, ...]
    bursts: tuple[int, ...]


def rate(tiers: Tiers, depth: float, prices: Prices) -> float:
    """Final tokens in a unit of time on a model of `depth` layers (`theory.nested`)."""
    stops = [*(share * depth for share in tiers.exits), depth]
    spans = [above - below for below, above in zip(stops, stops[1:], strict=False)]
    checks = [_checked(prices, span) for span in spans]
    levels = [Level(a, n, check) for a, n, check in zip(tiers.alphas, tiers.bursts, checks, strict=True)]
    return nested(prices.action(stops[0], 1), levels).throughput


def _checked(prices: Prices, span: float) -> Callable[[int], float]:
    """Time of a check: what waits and the newest token pass the span and the head."""
    return lambda waiting: prices.action(span, waiting + 1)


def advantage(above: Sequence[Tiers], below: Sequence[Tiers], depth: float, prices: Prices) -> float:
    """How many times faster the best of one set runs than the best of the other."""
    return max(rate(each, depth, prices) for each in above) / max(rate(each, depth, prices) for each in below)


def first_depth(ratios: Iterable[tuple[int, float]], goal: float) -> int | None:
    """The least depth whose ratio reaches the goal, None where none of them does."""
    return min((depth for depth, ratio in ratios if ratio >= goal), default=None)

"""What depth does to a hierarchy: exits stay at their shares of a model that grows, layers and heads cost what they did."""

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


def rate(tiers: Tiers, depth: float, prices: Prices, free: Sequence[int] = ()) -> float:
    """Final tokens in a unit of time on a model of `depth` layers (`theory.nested`).

    Stages named in `free`, the writer being 0, take no time: what a hierarchy could gain at most from a cheaper stage.
    """
    stops = [*(share * depth for share in tiers.exits), depth]
    spans = [above - below for below, above in zip(stops, stops[1:], strict=False)]
    checks = [0.0 if stage in free else _checked(prices, span) for stage, span in enumerate(spans, start=1)]
    levels = [Level(a, n, check) for a, n, check in zip(tiers.alphas, tiers.bursts, checks, strict=True)]
    return nested(0.0 if 0 in free else prices.action(stops[0], 1), levels).throughput


def plain_rate(depth: float, prices: Prices) -> float:
    """Tokens in a unit of time of plain decoding: every token passes all layers and the head alone."""
    return 1.0 / prices.action(depth, 1)


def best_rate(tiers: Iterable[Tiers], depth: float, prices: Prices, free: Sequence[int] = ()) -> float:
    """The rate of the fastest schedule."""
    return max(rate(each, depth, prices, free) for each in tiers)


def topped(tiers: Iterable[Tiers], alpha: float) -> list[Tiers]:
    """The same schedules under a last level that accepts each token with this probability."""
    return [each._replace(alphas=(*each.alphas[:-1], alpha)) for each in tiers]


def needed_alpha(tiers: Sequence[Tiers], depth: float, prices: Prices, goal: float) -> float | None:
    """The least acceptance of the last level, to a thousandth, with which the fastest schedule reaches a rate.

    None where even a last level that accepts everything does not.
    """
    live, low, high = _reaching(topped(tiers, 1.0), depth, prices, goal), 0.0, 1.0
    if not live:
        return None
    while high - low > 1e-3:
        middle = (low + high) / 2
        enough = _reaching(topped(live, middle), depth, prices, goal)
        live, low, high = (enough, low, middle) if enough else (live, middle, high)
    return high


def _reaching(tiers: Iterable[Tiers], depth: float, prices: Prices, goal: float) -> list[Tiers]:
    return [each for each in tiers if rate(each, depth, prices) >= goal]


def _checked(prices: Prices, span: float) -> Callable[[int], float]:
    """Time of a check: what waits and the newest token pass the span and the head."""
    return lambda waiting: prices.action(span, waiting + 1)


def advantage(above: Sequence[Tiers], below: Sequence[Tiers], depth: float, prices: Prices) -> float:
    """How many times faster the best of one set runs than the best of the other."""
    return best_rate(above, depth, prices) / best_rate(below, depth, prices)


def first_depth(ratios: Iterable[tuple[int, float]], goal: float) -> int | None:
    """The least depth whose ratio reaches the goal, None where none of them does."""
    return min((depth for depth, ratio in ratios if ratio >= goal), default=None)

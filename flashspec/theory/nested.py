"""Verifiers above verifiers that accept tokens by independent flips (HiSpec, Kumar et al. 2025, arXiv 2510.01336)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_share

BURSTS, WAITS = (1, 2, 3, 4, 6, 8), (2, 4, 6, 8, 12)  # drafted tokens, and tokens that wait for the whole model, of schedules
Check = float | Callable[[int], float]


class Level(NamedTuple):
    """A verifier: acts once `every` tokens wait, accepts each with probability alpha given all before it are.

    `check` is its time, a constant or a function of the tokens that wait. The first level's `every` is the burst.
    """

    alpha: float
    every: int
    check: Check

    def time(self, waiting: int) -> float:
        """Time of one action on so many waiting tokens."""
        return check_latency("check", self.check(waiting) if callable(self.check) else self.check)


def nested(draft: float, levels: Sequence[Level]) -> tuple[float, float]:
    """Expected final tokens and time of one action of the last level, above a writer that takes `draft` a token.

    The tokens that wait are a sum of what the level below delivers, stopped once there are enough (HiSpec, section 3); so
    many deliveries take their mean number times their mean time (Wald's identity). One over the other is the throughput.
    """
    if not levels:
        raise ValueError("a cascade needs at least one verifier above the writer")
    burst = check_block(levels[0].every)
    delivery, time = [*[0.0] * burst, 1.0], burst * check_latency("draft", draft)
    for level in levels:
        waiting = _gathered(delivery, check_block(level.every))
        time *= _mean(waiting) / _mean(delivery)
        time += sum(chance * level.time(count) for count, chance in enumerate(waiting) if chance)
        delivery = _delivered(waiting, check_share("alpha", level.alpha))
    return _mean(delivery), time


def scheduled(draft: float, checks: Sequence[Check], alphas: Sequence[float]) -> tuple[float, tuple[int, ...]]:
    """Tokens a unit of time at the best of all schedules of one verifier or two, and that schedule: the `every` of each."""
    found = []
    for every in product(BURSTS, *[WAITS] * (len(checks) - 1)):
        tokens, time = nested(draft, [Level(*level) for level in zip(alphas, every, checks, strict=True)])
        found.append((tokens / time, every))
    return max(found)


def _mean(chances: Sequence[float]) -> float:
    return sum(count * chance for count, chance in enumerate(chances))


def _gathered(delivery: Sequence[float], every: int) -> list[float]:
    """Deliveries added up until at least `every` tokens wait."""
    waiting = [1.0, *[0.0] * (every + len(delivery) - 2)]
    for start in range(every):
        before, waiting[start] = waiting[start], 0.0
        for more, chance in enumerate(delivery):
            waiting[start + more] += before * chance
    return waiting


def _delivered(waiting: Sequence[float], alpha: float) -> list[float]:
    """What is delivered upwards: the accepted tokens, and one of the level's own."""
    delivered = [0.0] * (len(waiting) + 1)
    for count, chance in enumerate(waiting):
        for kept in range(count + 1):
            delivered[kept + 1] += chance * alpha**kept * (1.0 if kept == count else 1.0 - alpha)
    return delivered

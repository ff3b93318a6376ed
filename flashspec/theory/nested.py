"""Verifiers above verifiers: tokens and time of a cascade whose every stage keeps tokens by independent flips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_share


class Level(NamedTuple):
    """A verifier: acts once `every` tokens wait, keeps each with probability alpha given all before it stand.

    `check` is its time, a constant or a function of the tokens that wait. The first level's `every` is the burst.
    """

    alpha: float
    every: int
    check: float | Callable[[int], float]

    def time(self, waiting: int) -> float:
        """Time of one action on so many waiting tokens."""
        return check_latency("check", self.check(waiting) if callable(self.check) else self.check)


class Yield(NamedTuple):
    """Expected final tokens of one action of the last stage, and the time of everything that led to it."""

    tokens: float
    time: float

    @property
    def throughput(self) -> float:
        """Final tokens per unit of time, the long-run rate (renewal-reward theorem)."""
        return self.tokens / self.time


class _Mass(NamedTuple):
    """Probability, and expected time on that event (time x probability)."""

    chance: float = 0.0
    time: float = 0.0

    def plus(self, other: _Mass) -> _Mass:
        return _Mass(self.chance + other.chance, self.time + other.time)

    def then(self, other: _Mass) -> _Mass:
        """One event after another, independent of it."""
        return _Mass(self.chance * other.chance, self.time * other.chance + self.chance * other.time)


Outcome = dict[int, _Mass]


def nested(draft: float, levels: Sequence[Level]) -> Yield:
    """Tokens and time of one action of the last level, above a writer that takes `draft` a token.

    Exact for independent flips: the tokens that wait are a sum of what the level below delivers, stopped once there are
    enough (HiSpec, arXiv 2510.01336, section 3: draft, intermediate verifier, target). One level is
    `tokens_per_check` over `round_time`.
    """
    if not levels:
        raise ValueError("a cascade needs at least one verifier above the writer")
    burst = check_block(levels[0].every)
    found: Outcome = {burst: _Mass(1.0, burst * check_latency("draft", draft))}
    for level in levels:
        found = _checked(_gathered(found, check_block(level.every)), level)
    return Yield(sum(n * m.chance for n, m in found.items()), sum(m.time for m in found.values()))


def _gathered(delivery: Outcome, every: int) -> Outcome:
    """Deliveries added up until at least `every` tokens wait."""
    open_, full = {0: _Mass(1.0)}, Outcome()
    while open_:
        start = min(open_)
        before = open_.pop(start)
        for more, mass in delivery.items():
            total = start + more
            place = full if total >= every else open_
            place[total] = place.get(total, _Mass()).plus(before.then(mass))
    return full


def _checked(waiting: Outcome, level: Level) -> Outcome:
    """What is delivered upwards: the tokens that stand, and one of the level's own."""
    check_share("alpha", level.alpha)
    delivered: Outcome = {}
    for count, mass in waiting.items():
        timed = _Mass(mass.chance, mass.time + mass.chance * level.time(count))
        for kept in range(count + 1):
            share = level.alpha**kept * (1.0 if kept == count else 1.0 - level.alpha)
            delivered[kept + 1] = delivered.get(kept + 1, _Mass()).plus(timed.then(_Mass(share)))
    return delivered

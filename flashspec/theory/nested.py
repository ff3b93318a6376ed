"""Verifiers above verifiers whose every stage accepts tokens by independent flips: tokens, time and layer passes, in expectation
and by the coin flips that the closed forms must equal (HiSpec, Kumar et al. 2025, arXiv 2510.01336).

Where the stages share one model they end at the layers `stops`, the writer's first and the model's depth last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_share


class Level(NamedTuple):
    """A verifier: acts once `every` tokens wait, accepts each with probability alpha given all before it are.

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

    probability: float = 0.0
    time: float = 0.0

    def plus(self, other: _Mass) -> _Mass:
        return _Mass(self.probability + other.probability, self.time + other.time)

    def then(self, other: _Mass) -> _Mass:
        """One event after another, independent of it."""
        return _Mass(self.probability * other.probability, self.time * other.probability + self.probability * other.time)


Outcome = dict[int, _Mass]


def nested(draft: float, levels: Sequence[Level]) -> Yield:
    """Tokens and time of one action of the last level, above a writer that takes `draft` a token.

    Exact for independent flips: the tokens that wait are a sum of what the level below delivers, stopped once there are
    enough (HiSpec, section 3). One level is `tokens_per_check` over `round_time`.
    """
    if not levels:
        raise ValueError("a cascade needs at least one verifier above the writer")
    burst = check_block(levels[0].every)
    found: Outcome = {burst: _Mass(1.0, burst * check_latency("draft", draft))}
    for level in levels:
        found = _checked(_gathered(found, check_block(level.every)), level)
    return Yield(sum(n * m.probability for n, m in found.items()), sum(m.time for m in found.values()))


def _gathered(delivery: Outcome, every: int) -> Outcome:
    """Deliveries added up until at least `every` tokens wait."""
    open_, full = {0: _Mass(1.0)}, Outcome()
    while open_:
        start = min(open_)
        before = open_.pop(start)
        for more, mass in delivery.items():
            total = start + more
            sums = full if total >= every else open_
            sums[total] = sums.get(total, _Mass()).plus(before.then(mass))
    return full


def _checked(waiting: Outcome, level: Level) -> Outcome:
    """What is delivered upwards: the accepted tokens, and one of the level's own."""
    check_share("alpha", level.alpha)
    delivered: Outcome = {}
    for count, mass in waiting.items():
        timed = _Mass(mass.probability, mass.time + mass.probability * level.time(count))
        for kept in range(count + 1):
            share = level.alpha**kept * (1.0 if kept == count else 1.0 - level.alpha)
            delivered[kept + 1] = delivered.get(kept + 1, _Mass()).plus(timed.then(_Mass(share)))
    return delivered


def rows_read(final: int, rejected: Sequence[int]) -> list[int]:
    """Tokens that each span of one model computes, exactly: the `final` ones, and all rejected at or above it.

    `final` counts prompt and text without the newest token, which stays pending; rejected[i] are the tokens that level i
    rejected. The writer and the first level compute the same rows, for that level checks all of the writer's drafts.
    """
    sums = [final + sum(rejected[level:]) for level in range(len(rejected))]
    return [sums[0], *sums]


def layer_tokens_per_token(levels: Sequence[Level], stops: Sequence[int], reuse: bool = True) -> float:
    """Expected tokens times layers computed for each final token.

    With reuse a stage computes the layers above the stage below it. Without, it starts at the bottom, and of what a stage
    above rejects it has not read the newest token.
    """
    if list(stops) != sorted(set(stops)) or len(stops) < 2 or stops[0] < 1:
        raise ValueError(f"stops must be at least two layer numbers from 1, in rising order, got {tuple(stops)}")
    if len(stops) != len(levels) + 1:
        raise ValueError(f"{len(levels)} levels need {len(levels) + 1} stops, the writer's included, got {len(stops)}")
    final, total, below = nested(0.0, levels).tokens, 0.0, 0
    for stage, stop in enumerate(stops):
        lost = (_lost(levels, n, own=reuse or n == stage - 1) for n in range(max(stage - 1, 0), len(levels)))
        total += (1.0 + sum(lost) / final) * (stop - below)
        below = stop if reuse else 0
    return total


def _lost(levels: Sequence[Level], number: int, own: bool) -> float:
    """Mean rows computed in vain, over one action of the last level, because of what one level rejects."""
    alpha = levels[number].alpha

    def rejected(waiting: int) -> float:
        kept = sum(alpha**position for position in range(1, waiting + 1))
        return waiting - kept - (0.0 if own else 1.0 - alpha**waiting)

    return nested(0.0, [Level(a, n, rejected if i == number else 0.0) for i, (a, n, _) in enumerate(levels)]).time


@dataclass
class Tally:
    """Whole numbers of a coin-flip run, by level from the lowest, and its virtual clock."""

    actions: list[int]
    rejected: list[int]
    drafted: int = 0
    tokens: int = 0
    clock: float = 0.0


def flip(draft: float, levels: Sequence[Level], checks: int, seed: int = 0) -> Tally:
    """Let coins decide `checks` actions of the last level: the simulation that the closed forms must equal."""
    dice, tally = random.Random(seed), Tally([0] * len(levels), [0] * len(levels))

    def wait(number: int) -> int:
        waiting = 0
        while waiting < levels[number].every:
            waiting += act(number - 1) if number else levels[0].every
        return waiting

    def act(number: int) -> int:
        waiting, kept = wait(number), 0
        while kept < waiting and dice.random() < levels[number].alpha:
            kept += 1
        tally.actions[number] += 1
        tally.rejected[number] += waiting - kept
        tally.clock += levels[number].time(waiting)
        return kept + 1

    tally.tokens = sum(act(len(levels) - 1) for _ in range(checks))
    tally.drafted = tally.actions[0] * levels[0].every
    tally.clock += tally.drafted * draft
    return tally

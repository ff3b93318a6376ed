"""Forecasts with intervals: what resampled evidence says, and what would have to be true for speculation to break even."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flashspec.theory.checks import check_block, check_positive
from flashspec.theory.rounds import Costs, break_even_acceptance, round_time


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class BreakEven(NamedTuple):
    """What one change alone would have to be for speculation to be as fast as plain decoding.

    `acceptance` is the alpha needed (None: no alpha is enough), `tar` the tokens a check needed, `draft` the longest draft
    step that still pays (None: not even a free draft does), in the unit of the costs.
    """

    acceptance: float | None
    tar: float
    draft: float | None


def bootstrap(samples: Sequence[Sequence[Any]], statistic: Callable[..., float], draws: int = 1000, seed: int = 0) -> Interval:
    """A statistic of samples and its 95 % percentile interval; each sample is drawn anew with replacement (Efron 1979); seeded.

    Items must be independent of each other: whole texts, not tokens; whole turns, not calls. Raises ValueError for a sample
    of fewer than 3 items, where a bootstrap says nothing.
    """
    fewest = min((len(sample) for sample in samples), default=0)
    if fewest < 3:
        raise ValueError(f"an interval needs at least 3 items in every sample, got {fewest}; give more texts or repeats")
    check_block(draws)
    dice = random.Random(seed)
    found = sorted(statistic(*(dice.choices(sample, k=len(sample)) for sample in samples)) for _ in range(draws))
    edge = int(draws * (1 - 0.95) / 2)
    return Interval(statistic(*samples), found[edge], found[draws - 1 - edge])


def break_even(tar: float, costs: Costs, block: int, step: float) -> BreakEven:
    """All that would have to be true, one change at a time, for speculation at this block to cost what plain decoding does.

    The draft step solves step TAR = k d + verify + ... for d.
    """
    whole = round_time(costs, block)
    needed = whole / check_positive("baseline step", step)
    draft = (step * tar - (whole - costs.burst(block))) / block
    return BreakEven(break_even_acceptance(costs, block, step), needed, draft if draft >= 0.0 else None)

"""Layer passes of nested stages over one model's exits, exactly and in expectation, and the coin flips they must equal.

A level is a verifying stage (`theory.nested`); the stages of a model end at the layers `stops`, the writer's first and the
model's depth last (HiSpec, Kumar et al. 2025, arXiv 2510.01336).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flashspec.theory.nested import Level, nested


class Hierarchy(NamedTuple):
    """A writer's time for one token, and the levels above it with theirs."""

    draft: float
    levels: tuple[Level, ...]


def layered(
    shape: Sequence[tuple[int, float, int]], depth: int, layer: float, head: float, widen: Callable[[int], float] | None = None
) -> Hierarchy:
    """A hierarchy over one model of `depth` layers, whose exits are (layer, chance to stand above, burst that waits for it).

    A layer and a head have one price; `widen(n)` is what n rows cost over one (1 by default: a check as dear as a step). A
    check reads what waits and the newest token (the cost per committed token of HiSpec, with the head in every check).
    """
    stops = [*(stop for stop, _, _ in shape), depth]
    check_stops(stops)
    wide = widen or (lambda rows: 1.0)
    spans = [above - below for below, above in zip(stops, stops[1:], strict=False)]
    levels = [Level(a, n, _priced(span * layer + head, wide)) for (_, a, n), span in zip(shape, spans, strict=True)]
    return Hierarchy(stops[0] * layer + head, tuple(levels))


def _priced(one: float, widen: Callable[[int], float]) -> Callable[[int], float]:
    return lambda waiting: one * widen(waiting + 1)


def check_stops(stops: Sequence[int]) -> None:
    """Refuse layer numbers that are no rising spans of one model."""
    if list(stops) != sorted(set(stops)) or len(stops) < 2 or stops[0] < 1:
        raise ValueError(f"stops must be at least two layer numbers from 1, in rising order, got {tuple(stops)}")


def rows_read(final: int, dropped: Sequence[int]) -> list[int]:
    """Tokens that each span of one model computes, exactly: the `final` ones it keeps, and all dropped at or above it.

    `final` counts prompt and text without the newest token, which stays pending; dropped[i] are the tokens that level i
    dropped. The writer and the first level compute the same rows, for the writer's drafts are all put to that level.
    """
    sums = [final + sum(dropped[level:]) for level in range(len(dropped))]
    return [sums[0], *sums]


def layer_tokens_per_token(levels: Sequence[Level], stops: Sequence[int], reuse: bool = True) -> float:
    """Expected tokens times layers computed for each final token.

    With reuse a stage computes the layers above the stage below it. Without, it starts at the bottom, and of what a stage
    above drops it has not read the newest token.
    """
    check_stops(stops)
    if len(stops) != len(levels) + 1:
        raise ValueError(f"{len(levels)} levels need {len(levels) + 1} stops, the writer's included, got {len(stops)}")
    final, total, below = nested(0.0, levels).tokens, 0.0, 0
    for stage, stop in enumerate(stops):
        lost = (_lost(levels, n, own=reuse or n == stage - 1) for n in range(max(stage - 1, 0), len(levels)))
        total += (1.0 + sum(lost) / final) * (stop - below)
        below = stop if reuse else 0
    return total


def _lost(levels: Sequence[Level], number: int, own: bool) -> float:
    """Mean rows computed in vain, over one action of the last level, because of what one level drops."""
    alpha = levels[number].alpha

    def dropped(waiting: int) -> float:
        kept = sum(alpha**place for place in range(1, waiting + 1))
        return waiting - kept - (0.0 if own else 1.0 - alpha**waiting)

    return nested(0.0, [Level(a, n, dropped if i == number else 0.0) for i, (a, n, _) in enumerate(levels)]).time


@dataclass
class Tally:
    """Whole numbers of a coin-flip run, by level from the lowest, and its virtual clock."""

    actions: list[int]
    dropped: list[int]
    drafted: int = 0
    tokens: int = 0
    clock: float = 0.0


def flip(hierarchy: Hierarchy, checks: int, seed: int = 0) -> Tally:
    """Let coins decide `checks` actions of the last level: the simulation that the closed forms must equal."""
    levels, dice = hierarchy.levels, random.Random(seed)
    tally = Tally([0] * len(levels), [0] * len(levels))

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
        tally.dropped[number] += waiting - kept
        tally.clock += levels[number].time(waiting)
        return kept + 1

    tally.tokens = sum(act(len(levels) - 1) for _ in range(checks))
    tally.drafted = tally.actions[0] * levels[0].every
    tally.clock += tally.drafted * hierarchy.draft
    return tally

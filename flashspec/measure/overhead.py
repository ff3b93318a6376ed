"""What the loop adds to a round: decodes over stand-ins whose forwards cost nothing, with the caches as a target leaves them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from flashspec.decoding.cascade import decode
from flashspec.decoding.rules import rule_for
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits
from flashspec.heads.base import Fixed
from flashspec.measure import clock
from flashspec.measure.parts import held
from flashspec.models.reader import Reads
from flashspec.sampling import GREEDY, Dice, Scores

BURST, ROUNDS = 4, 16
WALK = 32 << 20


class Walk:
    """Reads WALK bytes, as a forward reads weights, and counts its own seconds so that they can be taken away."""

    def __init__(self) -> None:
        self.weights, self.seconds = torch.ones(WALK // 4), 0.0

    def __call__(self) -> None:
        start = clock.now()
        self.weights.sum()
        self.seconds += clock.now() - start

    def apart(self, call: Callable[[], object]) -> float:
        """Seconds of a call without those of the walks in it."""
        before = self.seconds
        whole = clock.seconds_of(call)
        return whole - (self.seconds - before)


class Instant:
    """A reader that costs nothing but a walk, where it has one: its rows never change."""

    def __init__(self, context: int, walk: Walk | None) -> None:
        self.rows, self.walk = torch.zeros(context, Constant.vocab_size), walk
        self.context, self.seen = context, 0
        self.text: Tensor | None = None

    def read(self, tokens: Tensor) -> Reads:
        """Count what is missing."""
        missing = max(0, len(tokens) - self.seen)
        if missing and self.walk is not None:
            self.walk()
        self.seen += missing
        return (missing,)

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.seen = min(self.seen, n)


class Constant(Fixed):
    """A head that costs nothing and always says the same."""

    vocab_size = 8

    def __call__(self, rows: Tensor, positions: Tensor, dice: Dice) -> Scores:
        return Scores(None, rows)

    def bytes_read(self, rows: int) -> int:
        """Nothing is read."""
        return 0


def instant_stages(count: int, walk: Walk) -> list[Stage]:
    """Stages whose readers and heads cost nothing; the last reader takes the walk."""
    rule, context = rule_for(GREEDY, Constant.vocab_size), 2 + ROUNDS * (BURST + 1)
    readers = [Instant(context, walk if i == count - 1 else None) for i in range(count)]
    return [Stage(reader, Constant(), rule, BURST if i else 1) for i, reader in enumerate(readers)]


def loop_overhead(count: int) -> float:
    """Seconds that the loop adds to a round of `count` stages (1: to a token of plain decoding) beside their own actions.

    The median round of a decode, less the medians of the same burst and check called by themselves; every forward is a walk
    that empties the caches, and the walks' own seconds count on neither side.
    """
    walk = Walk()
    bench = held(instant_stages(count, walk), [0, 1])
    looped = decode(instant_stages(count, walk), [0], Limits(ROUNDS * (BURST + 1 if count > 1 else 1)))
    calls: list[Callable[[], object]] = [partial(next, looped), bench.burst, bench.check]
    with torch.inference_mode():
        turns = [[walk.apart(call) for call in calls[: 1 + count]] for _ in range(ROUNDS)]
    whole, *alone = map(median, zip(*turns, strict=True))
    return max(0.0, whole - sum(alone))

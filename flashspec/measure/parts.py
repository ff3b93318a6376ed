"""Parts of a round measured alone, un-instrumented: the only times that a prediction may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from flashspec.decoding.cascade import Event, Limits, State, check, decode, draft
from flashspec.decoding.rules import Drawn, rule_for
from flashspec.decoding.stages import Stage
from flashspec.decoding.ways import CompiledBurst
from flashspec.heads.base import LogitRows
from flashspec.measure import clock
from flashspec.models.reader import Reader
from flashspec.sampling import GREEDY, Scores

BURST, ROUNDS, IDS = 4, 16, 8  # of the decodes over stand-ins that tell what the loop costs
WALK = 32 << 20
TURNS = 3  # of the stages of a decode


@dataclass(eq=False)
class Bench:
    """A decode paused after the first `start` tokens of a text, so that one action of any stage can be repeated.

    The loop's own actions are timed in the order of a decode: burst, check, read; with an eager final token burst, read, check.
    `behind` are the next tokens of the text, which can wait for a check; `proposal` says how they were drawn.
    """

    state: State
    behind: Tensor
    proposal: Drawn

    def __post_init__(self) -> None:
        self.start = self.state.length

    @property
    def stages(self) -> list[Stage]:
        """The stages of the decode."""
        return self.state.stages

    def with_bursts(self, k: int) -> Bench:
        """The same decode of a draft and a target with bursts of k tokens, over the same readers."""
        writer, target = self.stages
        state = State.at([writer, target._replace(every=k)], self.state.tokens.clone(), self.start)
        return replace(self, state=state)

    def hold(self, level: int = 0, wait: int = 0) -> None:
        """Let `wait` tokens of the text wait for a level; the readers below have read all but the newest."""
        tokens, length = self.state.tokens, self.start + wait
        tokens[self.start : length] = self.behind[:wait]
        self.state = State.at(self.stages, tokens, length, level, [self.proposal] * wait)
        for number, stage in enumerate(self.stages):
            stage.reader.rewind(self.start - 1)
            if number < level:
                stage.reader.read(tokens[: length - 1])

    def burst(self) -> list[Event]:
        """Go back to the start of the round and write a burst."""
        self.hold()
        return draft([self.state])[0]

    def check(self, level: int = 1) -> list[Event]:
        """Check what waits for a level: the burst just written, or the tokens held before it."""
        return check([self.state], level)[0]

    def read(self, count: int = 1) -> Tensor:
        """Read the last `count` tokens again with the target, one as eager finalisation does; returns their rows."""
        reader, first = self.stages[-1].reader, self.start - count
        reader.rewind(first)
        reader.read(self.state.tokens[: self.start])
        return reader.rows[first : self.start]

    def project(self) -> Scores:
        """Project the newest row with the writer's head."""
        stage, at = self.stages[0], self.start - 1
        return stage.head(stage.reader.rows[at - 1 : at])


def held(stages: list[Stage], text: Sequence[int], behind: Sequence[int] = (), room: int = 0) -> Bench:
    """Stages after a text, with room for `room` more tokens (0: a burst and the verifier's own)."""
    state = State.start(stages, list(text), Limits(room or stages[-1].every + 1))
    ids = torch.tensor(list(behind) or [0], device=state.tokens.device)
    own = Scores(ids[:1, None], torch.zeros(1, 1, device=ids.device))
    bench = Bench(state, ids, Drawn(ids[:1], own, torch.ones(1, dtype=torch.bool, device=ids.device)))
    with torch.inference_mode():
        for stage in stages:
            stage.reader.read(state.tokens[: bench.start - 1])
        bench.burst()
        bench.proposal = next(iter(bench.state.waiting), bench.proposal)
    return bench


def stage_costs(stages: list[Stage], text: Sequence[int], waits: Sequence[int]) -> dict[str, float]:
    """Median seconds of a `token` of stage 0, of the `head` in it, and of `check_1`, ... with `waits[i]` tokens for level i + 1.

    The head's share of a token is timed by the kernels' own clock, or else as a projection alone.
    """
    start, most = len(text) - max([1, *waits]), max([stages[min(1, len(stages) - 1)].every, *waits])
    bench = held(stages, text[:start], text[start:], most + 2)
    written = max(1, bench.state.length - start)
    calls: dict[str, Callable[[], object]] = {"burst": bench.burst}
    for level, wait in enumerate(waits, start=1):
        calls[f"{clock.UNUSED} {level}"] = partial(bench.hold, level, wait)
        calls[f"check_{level}"] = partial(bench.check, level)
    calls |= {clock.UNUSED: bench.hold, "head": bench.project}
    found, write = clock.medians(calls, TURNS, 1, bench.state.tokens.device), stages[0].fast_write
    found["token"] = found.pop("burst") / written
    if isinstance(write, CompiledBurst):
        found["head"] = found["token"] * float(write.writer.times[1] / write.writer.times.sum())
    return found


class Instant(Reader):
    """A reader whose rows never change: it reads `walk` bytes, as a forward reads weights, and sums the seconds this takes."""

    def __init__(self, context: int, walk: int) -> None:
        super().__init__(context, torch.zeros(context, IDS))
        self.weights, self.seconds = torch.ones(walk // 4), 0.0

    def _fresh(self, tokens: Tensor) -> Tensor:
        self.seconds += clock.seconds_of(self.weights.sum)
        return self.rows[self.seen : len(tokens)]


def loop_overhead(count: int) -> float:
    """Seconds that the loop adds to a round of `count` stages (1: to a token of plain decoding).

    The median round of a decode over stand-ins, minus the same burst and check alone. Every forward of the last stage is a walk
    through memory that empties the caches; the walks themselves do not count.
    """
    rule, context, readers = rule_for(GREEDY, IDS), 2 + ROUNDS * (BURST + 1), list[Instant]()

    def stages() -> list[Stage]:
        mine = [Instant(context, WALK if i == count - 1 else 0) for i in range(count)]
        readers.extend(mine)
        return [Stage(reader, LogitRows(IDS), rule, BURST if i else 1) for i, reader in enumerate(mine)]

    def apart(call: Callable[[], object]) -> float:
        """Seconds of a call without the walks in it."""
        before = sum(reader.seconds for reader in readers)
        return clock.seconds_of(call) - (sum(reader.seconds for reader in readers) - before)

    bench = held(stages(), [0, 1])
    looped = decode(stages(), [0], Limits(ROUNDS * (BURST + 1 if count > 1 else 1)))
    calls: list[Callable[[], object]] = [partial(next, looped), bench.burst, bench.check]
    with torch.inference_mode():
        turns = [[apart(call) for call in calls[: 1 + count]] for _ in range(ROUNDS)]
    whole, *alone = map(median, zip(*turns, strict=True))
    return max(0.0, whole - sum(alone))

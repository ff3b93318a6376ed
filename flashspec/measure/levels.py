"""Cascades of any height, measured: what every level verified in a timed decode, and what an action of each level costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from flashspec.decoding.compiled import CompiledBurst
from flashspec.decoding.generate import agreement
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.measure import clock
from flashspec.measure.contest import Entry, Record, Turns, in_turns, joined_by_kind
from flashspec.measure.parts import held
from flashspec.measure.prompts import Prompt
from flashspec.theory import Level, nested


class Verified(NamedTuple):
    """Whole numbers of one level: actions, tokens that waited, tokens it accepted, and tokens it decided about."""

    actions: int = 0
    waiting: int = 0
    kept: int = 0
    decided: int = 0

    def plus(self, other: Verified) -> Verified:
        return Verified(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def alpha(self) -> float:
        """Probability that a token is accepted, given that all before it were."""
        return self.kept / self.decided if self.decided else 0.0


class Climb(NamedTuple):
    """A timed decode and what its levels verified, from the lowest."""

    record: Record
    levels: tuple[Verified, ...]


def verified(events: Sequence[Event], stage: int) -> Verified:
    """What one stage verified in a decode."""
    mine = [e for e in events if e.stage == stage and e.adds]
    return Verified(len(mine), sum(e.waiting for e in mine), *agreement(list(events), stage))


def climb(models: Models, entries: Sequence[Entry], prompts: Sequence[Prompt], turns: Turns) -> Iterator[Climb]:
    """Every entry on every prompt in turns, as `contest`, with what each level verified."""
    for run, record in in_turns([(models, entry) for entry in entries], prompts, turns):
        yield Climb(record, tuple(verified(run.events, stage) for stage in range(1, len(run.stages))))


def climbs_by_kind(climbs: Sequence[Climb]) -> list[Climb]:
    """Climbs of one entry, kind and repeat as one: seconds and whole numbers summed."""
    groups: dict[tuple, list[Climb]] = {}
    for each in climbs:
        groups.setdefault(each.record[:3], []).append(each)
    return [_joined(group) for group in groups.values()]


def _joined(group: list[Climb]) -> Climb:
    levels = list(group[0].levels)
    for other in group[1:]:
        levels = [mine.plus(more) for mine, more in zip(levels, other.levels, strict=True)]
    return Climb(joined_by_kind([each.record for each in group])[0], tuple(levels))


class StageCosts(NamedTuple):
    """Median seconds: a token of stage 0, the head's share of it, and an action of each level at so many waiting tokens."""

    draft: float
    head: float
    checks: tuple[float, ...]


def stage_costs(stages: list[Stage], text: Sequence[int], waits: Sequence[int], plan: clock.Plan) -> StageCosts:
    """Costs of these stages within `text`, with `waits[i]` tokens waiting for level i + 1, as the loop would find them.

    A drafted token costs its share of a burst as the loop writes it, and the head in it what the kernels' own clock says; where
    they do not write the burst, what a projection takes by itself.
    """
    start, most = len(text) - max([1, *waits]), max([stages[min(1, len(stages) - 1)].every, *waits])
    bench = held(lambda: stages, text[:start], start, text[start:], most + 2)
    written = max(1, bench.state.length - start)
    calls: dict[str, Callable[[], object]] = {"burst": bench.burst}
    for level, wait in enumerate(waits, start=1):
        calls[f"{clock.UNUSED} {level}"], calls[f"check {level}"] = partial(bench.hold, level, wait), partial(bench.check, level)
    burst, *checks, head = clock.medians({**calls, clock.UNUSED: bench.hold, "head": bench.project}, plan).values()
    draft, write = burst / written, stages[0].write
    if isinstance(write, CompiledBurst):
        head = draft * float(write.writer.times[1] / write.writer.times.sum())
    return StageCosts(draft, head, tuple(checks))


def predicted(costs: StageCosts, levels: Sequence[Verified], waits: Sequence[int]) -> float:
    """Final tokens a second that costs and acceptance predict (`theory.nested`), the prompt's reading apart."""
    if not levels:
        return 1.0 / costs.draft
    return nested(costs.draft, [Level(j.alpha, n, c) for j, n, c in zip(levels, waits, costs.checks, strict=True)]).throughput

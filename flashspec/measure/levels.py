"""Cascades of any height, measured: what every level judged in a timed decode, and what an action of each level costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.cascade import Event, Stage
from flashspec.decoding.generate import agreement
from flashspec.decoding.models import Models
from flashspec.decoding.rules import Waiting
from flashspec.measure import clock
from flashspec.measure.contest import Entry, Record, Turns, in_turns, joined_by_kind
from flashspec.measure.prompts import Prompt
from flashspec.scores import Dice
from flashspec.theory import Level, nested


class Judged(NamedTuple):
    """Whole numbers of one level: actions, tokens that waited, tokens it kept, and tokens it decided about."""

    actions: int = 0
    waiting: int = 0
    kept: int = 0
    decided: int = 0

    def plus(self, other: Judged) -> Judged:
        return Judged(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def alpha(self) -> float:
        """Chance that a token stands, given that all before it stood."""
        return self.kept / self.decided if self.decided else 0.0


class Climb(NamedTuple):
    """A timed decode and what its levels judged, from the lowest."""

    record: Record
    levels: tuple[Judged, ...]


def judged(events: Sequence[Event], stage: int) -> Judged:
    """What one stage judged in a decode."""
    mine = [e for e in events if e.stage == stage and e.adds]
    return Judged(len(mine), sum(e.waiting for e in mine), *agreement(list(events), stage))


def climb(models: Models, entries: Sequence[Entry], prompts: Sequence[Prompt], turns: Turns) -> Iterator[Climb]:
    """Every entry on every prompt in turns, as `contest`, with what each level judged."""
    for run, record in in_turns(models, entries, prompts, turns):
        yield Climb(record, tuple(judged(run.events, stage) for stage in range(1, len(run.stages))))


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


class Costs(NamedTuple):
    """Median seconds: a token of stage 0, the head's share of it, and an action of each level at so many waiting tokens."""

    draft: float
    head: float
    checks: tuple[float, ...]


class Act(NamedTuple):
    """What is timed, and what has to be so before it."""

    ready: Callable[[], object]
    call: Callable[[], object]


def stage_costs(stages: list[Stage], text: Sequence[int], waits: Sequence[int], plan: clock.Plan) -> Costs:
    """Costs of these stages within `text`, with `waits[i]` tokens waiting for level i + 1, as the loop would find them."""
    tokens = torch.tensor(list(text), device=stages[0].reader.rows.device)
    start = len(tokens) - max([1, *waits])
    acts = [_step(stages[0], tokens[:start]), _head(stages[0], start)]
    acts += [_check(stages, i, tokens[: start + wait], start) for i, wait in enumerate(waits, start=1)]
    with torch.inference_mode():
        for stage in stages:
            stage.reader.rewind(0)
            stage.reader.read(tokens[: start - 1])
        found = _medians(acts, plan)
    return Costs(found[0], found[1], tuple(found[2:]))


def _medians(acts: list[Act], plan: clock.Plan) -> list[float]:
    """Median seconds of each act, taken in turns."""
    raw: list[list[float]] = [[] for _ in acts]
    for turn in range(-plan.warmup, plan.repeats):
        for seconds, act in zip(raw, acts, strict=True):
            act.ready()
            spent = clock.seconds_of(act.call)
            if turn >= 0:
                seconds.append(spent)
    return [clock.median(seconds) for seconds in raw]


def _step(stage: Stage, tokens: Tensor) -> Act:
    """Read one token, project and draw."""
    start = len(tokens)

    def step() -> None:
        rows = stage.reader.read(tokens)[start - 1 :]
        stage.rule.draw(stage.head(rows, torch.tensor([start]), Dice(0)), start, 0)

    return Act(lambda: stage.reader.rewind(start - 1), step)


def _head(stage: Stage, start: int) -> Act:
    """Project one row."""
    return Act(lambda: None, lambda: stage.head(stage.reader.rows[start - 2 : start - 1], torch.tensor([start]), Dice(0)))


def _check(stages: list[Stage], level: int, tokens: Tensor, start: int) -> Act:
    """An action of one level; what lies below has read all but the newest token, as it has in the loop."""
    stage, asked = stages[level], tokens[start:].tolist()

    def ready() -> None:
        stage.reader.rewind(start - 1)
        for below in stages[:level]:
            below.reader.rewind(start - 1)
            below.reader.read(tokens[:-1])

    def check() -> None:
        rows = stage.reader.read(tokens)[start - 1 :]
        scores = stage.head(rows, torch.arange(start, len(tokens) + 1), Dice(0))
        stage.rule.verify(scores, Waiting(asked, [scores.row(i) for i in range(len(asked))], start, level))

    return Act(ready, check)


def foretold(costs: Costs, levels: Sequence[Judged], waits: Sequence[int]) -> float:
    """Final tokens a second that costs and acceptance foretell (`theory.nested`), the prompt's reading apart."""
    if not levels:
        return 1.0 / costs.draft
    return nested(costs.draft, [Level(j.alpha, n, c) for j, n, c in zip(levels, waits, costs.checks, strict=True)]).throughput

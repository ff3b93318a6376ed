"""Cascades of any height, measured: what every level verified in a timed decode, and what an action of each level costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.burst import Compiled
from flashspec.decoding.cascade import Cascade, Event, Limits, Stage
from flashspec.decoding.generate import agreement
from flashspec.decoding.models import Models
from flashspec.measure import clock
from flashspec.measure.contest import Entry, Record, Turns, in_turns, joined_by_kind
from flashspec.measure.prompts import Prompt
from flashspec.scores import Dice, Scores
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


class Act(NamedTuple):
    """What is timed, and what has to be so before it."""

    ready: Callable[[], object]
    call: Callable[[], object]


class Ladder(NamedTuple):
    """A decode held behind `start` tokens of a text, before one and the same action of any level.

    The loop's own actions are timed, in the order of a decode, so that each finds the caches as the one before it leaves them.
    """

    cascade: Cascade
    text: Tensor
    start: int
    proposal: Scores

    def hold(self, level: int, wait: int) -> None:
        """Let `wait` tokens of the text wait for a level; what lies below has read all but the newest, as it has in the loop."""
        cascade, length = self.cascade, self.start + wait
        cascade.tokens[:length] = self.text[:length]
        cascade.length, cascade.sound = length, []
        cascade.marks = [length] * level + [self.start] * (len(cascade.stages) - level)
        cascade.proposals = dict.fromkeys(range(self.start, length), self.proposal)
        for number, stage in enumerate(cascade.stages):
            stage.reader.rewind(self.start - 1)
            if number < level:
                stage.reader.read(cascade.tokens[: length - 1])

    def burst(self) -> tuple[int, Scores]:
        """Tokens that a burst writes here, at least 1, and the scores of the first; its proposal where nothing is written."""
        self.hold(0, 0)
        self.cascade.draft()
        return max(1, self.cascade.length - self.start), self.cascade.proposals.get(self.start, self.proposal)

    def acts(self, waits: Sequence[int]) -> list[Act]:
        """A burst, an action of every level, and the projection of one row."""
        checks = [Act(partial(self.hold, i, wait), partial(self.cascade.check, i)) for i, wait in enumerate(waits, start=1)]
        return [Act(partial(self.hold, 0, 0), self.cascade.draft), *checks, Act(lambda: None, self.project)]

    def project(self) -> None:
        """Project one row with the writer's head."""
        stage, at = self.cascade.stages[0], self.start - 1
        stage.head(stage.reader.rows[at - 1 : at], torch.tensor([self.start]), Dice(0))


def ladder(stages: list[Stage], text: Sequence[int], waits: Sequence[int]) -> Ladder:
    """These stages before the last tokens of a text, of which the largest number in `waits` may wait.

    The stages' context must hold the text, a burst and two tokens more.
    """
    start, most = len(text) - max([1, *waits]), max([stages[min(1, len(stages) - 1)].every, *waits])
    cascade = Cascade(stages, list(text[:start]), Limits(most + 2))
    ids = torch.tensor(list(text), device=cascade.tokens.device)
    for stage in stages:
        stage.reader.read(ids[: start - 1])
    own = Scores(ids[start : start + 1, None], torch.zeros(1, 1, device=ids.device))
    return Ladder(cascade, ids, start, own)


def stage_costs(stages: list[Stage], text: Sequence[int], waits: Sequence[int], plan: clock.Plan) -> StageCosts:
    """Costs of these stages within `text`, with `waits[i]` tokens waiting for level i + 1, as the loop would find them.

    A drafted token costs its share of a burst as the loop writes it, and the head in it what the kernels' own clock says; where
    they do not write the burst, what a projection takes by itself.
    """
    with torch.inference_mode():
        held = ladder(stages, text, waits)
        written, proposal = held.burst()
        burst, *checks, head = _medians(held._replace(proposal=proposal).acts(waits), plan)
    draft, writer = burst / written, held.cascade.writer
    if isinstance(writer, Compiled):
        head = draft * float(writer.writer.times[1] / writer.writer.times.sum())
    return StageCosts(draft, head, tuple(checks))


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


def predicted(costs: StageCosts, levels: Sequence[Verified], waits: Sequence[int]) -> float:
    """Final tokens a second that costs and acceptance predict (`theory.nested`), the prompt's reading apart."""
    if not levels:
        return 1.0 / costs.draft
    return nested(costs.draft, [Level(j.alpha, n, c) for j, n, c in zip(levels, waits, costs.checks, strict=True)]).throughput

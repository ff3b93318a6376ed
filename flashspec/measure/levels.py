"""Cascades of any height: what every level verified in a decode, and what an action of each level costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from flashspec.decoding.generate import agreement
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.decoding.ways import CompiledBurst
from flashspec.measure import clock
from flashspec.measure.parts import held


class Verified(NamedTuple):
    """Whole numbers of one level: actions, tokens that waited, tokens it accepted, and tokens it decided about."""

    actions: int = 0
    waiting: int = 0
    kept: int = 0
    decided: int = 0


def verified(events: Sequence[Event], stage: int) -> Verified:
    """What one stage verified in a decode."""
    mine = [e for e in events if e.stage == stage and e.adds]
    return Verified(len(mine), sum(e.waiting for e in mine), *agreement(list(events), stage))


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
    bench = held(lambda: stages, text[:start], text[start:], most + 2)
    written = max(1, bench.state.length - start)
    calls: dict[str, Callable[[], object]] = {"burst": bench.burst}
    for level, wait in enumerate(waits, start=1):
        calls[f"{clock.UNUSED} {level}"], calls[f"check {level}"] = partial(bench.hold, level, wait), partial(bench.check, level)
    burst, *checks, head = clock.medians({**calls, clock.UNUSED: bench.hold, "head": bench.project}, plan).values()
    draft, write = burst / written, stages[0].write
    if isinstance(write, CompiledBurst):
        head = draft * float(write.writer.times[1] / write.writer.times.sum())
    return StageCosts(draft, head, tuple(checks))

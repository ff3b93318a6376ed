"""A closed time ledger: every second of a decode belongs to one named part, nested parts counted once.

It comes from a run of its own, whose readers, heads and rules are wrapped; a throughput is never read off such a run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import Tensor

from flashspec.decoding.cascade import decode
from flashspec.decoding.compiled import CompiledBurst, CompiledScore, drawn_by_kernels, writer_of
from flashspec.decoding.rules import Drawn, Verdict, Waiting
from flashspec.decoding.stages import Judging, Stage, StepByStep, Verbs, in_turn
from flashspec.decoding.state import Limits
from flashspec.kernels import Stretch
from flashspec.measure import clock
from flashspec.model.reader import Reads
from flashspec.scores import Dice, Sampling, Scores

PARTS = (
    "prefill", "draft body", "draft head", "draw", "check body", "check head",
    "verify body", "verify head", "accept", "finalize", "rollback", "host",
)  # fmt: skip


class Account(NamedTuple):
    """Seconds by part, wall seconds measured around the whole decode, and the tokens it gave."""

    parts: dict[str, float]
    wall: float
    tokens: list[int]

    @property
    def closure(self) -> float:
        """Share of the wall time that the parts explain; 1 is a closed ledger."""
        return sum(self.parts.values()) / self.wall


@dataclass
class Ledger:
    """Exclusive seconds by part: while an inner part runs, the outer one's clock stands still."""

    seconds: dict[str, float] = field(default_factory=dict)
    eager: bool = False
    finalizing: bool = False
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the enclosed time to `name`; all that runs inside a finalising read is finalisation."""
        name = "finalize" if "finalize" in self._open else name
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        clock.settle()
        instant = clock.now()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + instant - self._since
        self._since = instant

    def move(self, source: str, name: str, nanoseconds: int) -> None:
        """Charge to `name` what a kernel says it took of `source`; finalisation keeps all of its own."""
        if "finalize" not in self._open:
            self.seconds[source] -= nanoseconds / 1e9
            self.seconds[name] = self.seconds.get(name, 0.0) + nanoseconds / 1e9


class TimedWriter:
    """A kernel writer whose calls are charged part by part, as the kernel's own clock divides them.

    The first call behind a new prompt reads that too: its layers are charged as prefill.
    """

    def __init__(self, writer: Any, ledger: Ledger, role: str) -> None:
        self.writer, self.ledger, self.role = writer, ledger, role

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.writer, attribute)

    def __call__(self, place: Stretch, law: Any) -> Any:
        return self._charged(place, self.writer, place, law)

    def check(self, place: Stretch) -> Any:
        """Read and score, charged as body and head."""
        return self._charged(place, self.writer.check, place)

    def _charged(self, place: Stretch, call: Any, *given: Any) -> Any:
        body, before = f"{self.role} body" if place.seen else "prefill", self.writer.times.tolist()
        with self.ledger.part(body):
            found = call(*given)
        _, head, draws = (after - b for after, b in zip(self.writer.times.tolist(), before, strict=True))
        self.ledger.move(body, f"{self.role} head", head)
        self.ledger.move(body, "draw", draws)
        return found


class TimedReader:
    """A reader whose reads and rewinds are charged; everything else is the reader's own."""

    def __init__(self, reader: Any, ledger: Ledger, name: str) -> None:
        self.reader, self.ledger, self.name = reader, ledger, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.reader, attribute)

    def read(self, tokens: Tensor) -> Reads:
        """Read what is missing, charged as prefill, finalisation or the stage's body."""
        late = self.name == "verify body" and self.ledger.finalizing
        name = "prefill" if self.reader.seen == 0 else "finalize" if late else self.name
        self.ledger.finalizing &= not late
        with self.ledger.part(name):
            return self.reader.read(tokens)

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens, charged as rollback."""
        with self.ledger.part("rollback"):
            self.reader.rewind(n)


class TimedHead:
    """A head whose calls are charged."""

    def __init__(self, head: Any, ledger: Ledger, name: str) -> None:
        self.head, self.ledger, self.name = head, ledger, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.head, attribute)

    def __call__(self, rows: Tensor, positions: Tensor, dice: Dice) -> Scores:
        with self.ledger.part(self.name):
            return self.head(rows, positions, dice)


class TimedRule:
    """A rule whose draws and verdicts are charged; in eager mode the read after the last stage's verdict is finalisation."""

    def __init__(self, rule: Any, ledger: Ledger, last: bool) -> None:
        self.rule, self.ledger, self.last = rule, ledger, last
        self.exact: bool = rule.exact
        self.sampling: Sampling = rule.sampling

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        with self.ledger.part("draw"):
            return self.rule.draw(scores, position, stage)

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        with self.ledger.part("accept"):
            verdict = self.rule.verify(scores, waiting)
        self.ledger.finalizing = self.last and self.ledger.eager
        return verdict


def role(index: int, stages: int) -> str:
    """What a stage is called in the ledger: the writer drafts, the last verifies, those between check."""
    if index == stages - 1:
        return "verify"
    return "draft" if index == 0 else "check"


def timed(stages: list[Stage], ledger: Ledger) -> list[Stage]:
    """The same stages with every part charged to the ledger; the given ones are left as they are."""
    readers: dict[int, TimedReader] = {}
    for index, stage in enumerate(stages):
        inner = copy.copy(stage.reader)
        below = readers.get(id(getattr(inner, "below", None)))
        if below is not None:
            inner.below = below  # type: ignore[attr-defined]
        readers[id(stage.reader)] = TimedReader(inner, ledger, f"{role(index, len(stages))} body")
    names = [role(index, len(stages)) for index in range(len(stages))]
    return [_timed(stage, readers[id(stage.reader)], ledger, name) for stage, name in zip(stages, names, strict=True)]


def _timed(stage: Stage, reader: TimedReader, ledger: Ledger, name: str) -> Stage:
    """One stage of several with its parts charged, in kernel calls where the loop would make them."""
    found, rule = writer_of(stage), TimedRule(stage.rule, ledger, name == "verify")

    def charged(parts: Stage) -> Verbs:
        if found is None:
            return in_turn(parts)
        writer = cast(Any, TimedWriter(found[1], ledger, name))
        score, draws = CompiledScore(reader.reader, writer), drawn_by_kernels(stage.rule, found[1].scoring)
        whole = CompiledBurst(reader.reader, writer, draws) if draws and stage.doubt is None else None
        return Verbs(whole or StepByStep(score, rule, stage.doubt), Judging(score, rule, stage.doubt))

    return stage._replace(reader=reader, head=TimedHead(stage.head, ledger, f"{name} head"), rule=rule, way=charged)


def account(stages: list[Stage], prompt: list[int], limits: Limits) -> Account:
    """Decode once with every part timed. The parts come from inside, the wall time from outside the generator."""
    ledger = Ledger(eager=limits.finalize == "eager")
    wrapped = timed(stages, ledger)
    clock.settle()
    start = clock.now()
    with ledger.part("host"):
        tokens = [token for step in decode(wrapped, prompt, limits) for token in step.tokens]
    wall = clock.now() - start
    return Account({part: ledger.seconds[part] for part in PARTS if part in ledger.seconds}, wall, tokens)

"""The loop: decoding is a cascade of stages.

Stage 0 writes tokens. Every later stage re-scores the tokens waiting below it, keeps a prefix and adds one token of its
own. A token is final when the last stage keeps it. Methods are lists of stages; nothing here knows their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.adaptive import Doubt
from flashspec.decoding.burst import Burst, burst_of
from flashspec.decoding.judge import Judge, judge_of
from flashspec.decoding.rules import AcceptanceRule, leading
from flashspec.decoding.settle import listed
from flashspec.heads.base import Head
from flashspec.model.reader import Reader
from flashspec.scores import Scores
from flashspec.typed import typed


class Stage(NamedTuple):
    """A reader, a head on its rows and a rule; acts once `every` tokens wait below it, or the stage below asks.

    A stage asks where its `doubt` says so: stage 0 before it draws the next token, which ends its burst, a verifier after
    it has judged, about the tokens it lets stand and its own. `burst` is how it writes as stage 0, `judge` how it judges
    above; None: the fastest way.
    """

    reader: Reader
    head: Head
    rule: AcceptanceRule
    every: int = 1
    doubt: Doubt | None = None
    burst: Burst | None = None
    judge: Judge | None = None


class Event(NamedTuple):
    """One action in whole numbers.

    `waiting` tokens were judged and `kept` of them stood; `rows` were read by the stage's reader; `adds` tokens were
    written: the burst's length at stage 0, 1 at a verification, 0 where a reader only read.
    """

    stage: int
    waiting: int
    kept: int
    rows: int
    adds: int = 1


class Step(NamedTuple):
    """Tokens that became final, and every event since the last step."""

    tokens: list[int]
    events: list[Event]


@typed
@dataclass(frozen=True)
class Limits:
    """When decoding ends, and whether the target reads its own final token at once ("eager") or with the next block."""

    max_new_tokens: int = 128
    stop: tuple[int, ...] = ()
    finalize: str = "deferred"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.finalize not in ("eager", "deferred"):
            raise ValueError(f"finalize must be 'eager' or 'deferred', got {self.finalize!r}")


def _validate(stages: list[Stage], prompt: list[int]) -> None:
    if not stages:
        raise ValueError("decode needs at least one stage")
    if not len(prompt):
        raise ValueError("the prompt is empty; give at least one token")
    sizes = {stage.head.vocab_size for stage in stages}
    if len(sizes) > 1:
        raise ValueError(f"the stages' vocabularies differ ({sorted(sizes)}); draft and target must share one tokenizer")
    if min(prompt) < 0 or max(prompt) >= min(sizes):
        raise ValueError(f"prompt ids must lie between 0 and {min(sizes) - 1}, got {min(prompt)}..{max(prompt)}")
    context = min(stage.reader.context for stage in stages)
    if len(prompt) >= context:
        raise ValueError(f"the prompt has {len(prompt)} tokens and the context holds {context}; shorten it to {context - 1}")
    if any(stage.every < 1 for stage in stages):
        raise ValueError(f"every stage must act on at least 1 waiting token, got {[s.every for s in stages]}")


class Cascade:
    """The state of one decode: tokens written, how many each stage vouches for, and the scores behind waiting tokens."""

    def __init__(self, stages: list[Stage], prompt: list[int], limits: Limits) -> None:
        _validate(stages, prompt)
        self.stages, self.limits = stages, limits
        self.end = min(min(s.reader.context for s in stages), len(prompt) + limits.max_new_tokens)
        self.tokens = torch.zeros(self.end, dtype=torch.int64, device=stages[0].reader.rows.device)
        self.tokens[: len(prompt)] = torch.tensor(prompt)
        self.length = len(prompt)
        self.marks = [self.length] * len(stages)
        self.proposals: dict[int, Scores] = {}
        self.sound: list[Tensor] = []
        self.asking = False
        self.writer = stages[0].burst or burst_of(stages[0])
        self.judges = {n: stage.judge or judge_of(stage, n) for n, stage in enumerate(stages) if n}
        self.final: list[int] = []
        for stage in stages:
            stage.reader.rewind(0)
            stage.reader.text = self.tokens
        self._tell(0, None)

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self.end - self.length

    @property
    def ours(self) -> bool:
        """Whether no other decode has begun over these stages."""
        return all(stage.reader.text is self.tokens for stage in self.stages)

    def round(self) -> list[Event]:
        """Let stages act from the bottom until one has too few tokens waiting."""
        last, events = len(self.stages) - 1, self._counted(0, self.draft)
        for i, stage in enumerate(self.stages[1:], start=1):
            if i < last and self.room <= 1:
                continue
            if self.length - self.marks[i] < stage.every and not self.asking and self.room > 1:
                break
            events += self._counted(i, partial(self.check, i))
        return events

    @property
    def burst(self) -> int:
        """Tokens the next stage waits for; a lone stage writes as many at once as it likes."""
        return self.stages[1].every if len(self.stages) > 1 else self.stages[0].every

    def draft(self) -> tuple[int, int, int]:
        """Write up to `burst` tokens from stage 0, leaving room for the verifier's own."""
        start, lone = self.length, len(self.stages) == 1
        drawn = self.writer.write(self.tokens, start, min(self.burst, self.room - (not lone)))
        for position, token in enumerate(drawn, start):
            self.proposals[position] = token.scores
            self.sound.append(token.sound)
        self.asking = len(drawn) < self.burst
        self.length = self.marks[0] = start + len(drawn)
        if lone:
            self.proposals.clear()
            self.final, self.sound = listed(self.tokens[start : self.length], self.sound), []
        return 0, 0, len(drawn)

    def check(self, i: int) -> tuple[int, int, int]:
        """Stage i judges what waits below it, keeps a prefix and adds one token; scores of what it keeps become its own."""
        stage, first = self.stages[i], self.marks[i]
        proposals, flags = [self.proposals[p] for p in range(first, self.length)], self.sound
        self.sound = []
        asked, verdict, scores = self.judges[i].judge(self.tokens[: self.length], first, proposals, flags)
        newest = first + verdict.kept
        self.tokens[newest] = verdict.token
        self.final = [*asked[: verdict.kept], verdict.token]
        if i + 1 < len(self.stages):
            self._promote(verdict.scores, first, newest)
        else:
            self.proposals.clear()
        self.asking = stage.doubt is not None and bool(stage.doubt(leading(scores, verdict.kept + 1)).any())
        self.length = newest + 1
        self.marks[: i + 1] = [self.length] * (i + 1)
        for other in self.stages:
            other.reader.rewind(newest)
        if i + 1 == len(self.stages):
            self._tell(first, verdict.scores)
        return len(asked), verdict.kept, 1

    def _tell(self, first: int, scores: Scores | None) -> None:
        """Heads that learn are told the tokens from `first` on, now final, and the last stage's scores; None as a text begins."""
        for stage in self.stages:
            learn = getattr(stage.head, "learn", None)
            if learn is not None:
                learn(self.tokens[first : self.length], scores)

    def _promote(self, scores: Scores, first: int, newest: int) -> None:
        """The tokens first..newest now carry the scores of the stage that kept them; later ones are gone."""
        earlier = {p: s for p, s in self.proposals.items() if p < first}
        self.proposals = earlier | {p: scores.row(p - first) for p in range(first, newest + 1)}

    def finalize(self) -> list[Event]:
        """Eager mode: the last stage reads the token it has just written, unless it is the last one there is room for."""
        if self.limits.finalize == "deferred" or not self.room or len(self.stages) == 1:
            return []
        return self._counted(len(self.stages) - 1, self._read_newest)

    def _read_newest(self) -> tuple[int, int, int]:
        self.stages[-1].reader.read(self.tokens[: self.length])
        return 0, 0, 0

    def _counted(self, i: int, action: Callable[[], tuple[int, int, int]]) -> list[Event]:
        """Run an action of stage i; one event for it, and one for every other reader that it made read."""
        before = [stage.reader.rows_read for stage in self.stages]
        waiting, kept, adds = action()
        rows = [stage.reader.rows_read - b for stage, b in zip(self.stages, before, strict=True)]
        others = [Event(j, 0, 0, n, 0) for j, n in enumerate(rows) if n and j != i]
        return [*others, Event(i, waiting, kept, rows[i], adds)]


def _cut(fresh: list[int], stop: tuple[int, ...]) -> tuple[list[int], bool]:
    """Final tokens up to and with the first stop token, and whether there was one."""
    at = next((i for i, token in enumerate(fresh) if token in stop), None)
    return (fresh, False) if at is None else (fresh[: at + 1], True)


@typed
def decode(stages: list[Stage], prompt: list[int], limits: Limits = Limits()) -> Iterator[Step]:
    """Decode from prompt ids; yields a Step whenever tokens became final.

    Stops after max_new_tokens, at the first final stop token (which is emitted), or when a context is full. Closing the
    generator at any point leaves stages ready for the next decode. Stages hold one text at a time: going on after another decode
    has begun over them raises RuntimeError. Raises ValueError for an empty or too long prompt, ids outside the vocabulary or
    stages of different vocabularies, FloatingPointError where a model gives NaN.
    """
    cascade, events, done = Cascade(stages, prompt, limits), [], False
    emitted = len(prompt)
    while cascade.room and not done:
        if not cascade.ours:
            raise RuntimeError("another decode has begun over these stages, which hold one text at a time; build some for each")
        with torch.inference_mode():
            events += cascade.round()
        final = cascade.marks[-1]
        if final > emitted:
            fresh, done = _cut(cascade.final, limits.stop)
            emitted = final
            if not done:
                with torch.inference_mode():
                    events += cascade.finalize()
            yield Step(fresh, events)
            events = []

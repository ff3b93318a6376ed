"""A stage of the cascade: a reader, a head on its rows, a rule, a doubt, and the two verbs by which it acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import AcceptanceRule, Drawn, Waiting
from flashspec.heads.base import Head
from flashspec.models.reader import Reader, Reads
from flashspec.sampling import Dice, Scores


class Burst(NamedTuple):
    """What a stage has written, token by token, and how many rows its reader has read for it."""

    drawn: list[Drawn]
    rows: int


class Judged(NamedTuple):
    """The verdict on the tokens asked about, on the host: how many are kept, the token behind them, warped scores of
    all rows, whether they were sound, whether the stage above should act early, and the rows read for it."""

    asked: list[int]
    kept: int
    token: int
    scores: Scores
    sound: Tensor
    asks: bool
    reads: Reads


Score = Callable[[Tensor, int], tuple[Scores, Reads]]
Write = Callable[[Tensor, int, int], Burst]
Judge = Callable[[Tensor, int, Sequence[Drawn], int], Judged]
Doubt = Callable[[Scores], Tensor]


class Verbs(NamedTuple):
    """How a stage writes at the bottom, and how it judges above.

    write(tokens, start, want) puts up to `want` tokens into tokens [room] from position `start` on, fewer where
    the stage is in doubt; a burst of nothing reads nothing. It waits for no accelerator, but once where there
    are doubts. judge(tokens, first, drawn, number) judges tokens [n] from position `first` on for stage
    `number`, and waits once; FloatingPointError where a model gave NaN.
    """

    write: Write
    judge: Judge


def confidence(scores: Scores, threshold: float) -> Tensor:
    """In doubt [n] where the largest probability lies below the threshold, a share in [0, 1]."""
    return scores.logits.softmax(-1).amax(-1) < threshold


def unsure(threshold: float | None) -> Doubt | None:
    """A doubt by `confidence`, None without a threshold; ValueError for one that means nothing.

    A drafter may not withdraw what it has drawn: that would favour the tokens it is sure of. Stopping before the
    draw depends on the prefix alone and keeps the law (Leviathan et al. 2023, section 2.3).
    """
    if threshold is None:
        return None
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"a threshold of doubt is a probability in [0, 1], got {threshold}")
    return partial(confidence, threshold=threshold)


def listed(numbers: Sequence[Tensor], sound: Sequence[Tensor]) -> list[int]:
    """Numbers on the host, in one transfer with the flags; FloatingPointError where one does not hold."""
    count = sum(map(len, numbers))
    packed = torch.cat([*numbers, *sound]).tolist()
    if not all(packed[count:]):
        raise FloatingPointError("a model gave NaN logits; check the checkpoint, or load it with dtype='float32'")
    return packed[:count]


@dataclass(frozen=True)
class InTurn:
    """Reads what is missing of tokens [n], then scores the rows that speak for positions `first` to n."""

    reader: Reader
    head: Head
    dice: Dice

    def __call__(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        reads = self.reader.read(tokens)
        rows = self.reader.rows[first - 1 : len(tokens)]
        return self.head(rows, torch.arange(first, len(tokens) + 1), self.dice), reads


@dataclass(frozen=True)
class StepByStep:
    """Writes token by token. A stage in doubt stops before the draw; off the CPU its burst is cut afterwards."""

    score: Score
    rule: AcceptanceRule
    doubt: Doubt | None

    def __call__(self, tokens: Tensor, start: int, want: int) -> Burst:
        doubts, drawn, rows = list[Tensor](), list[Drawn](), 0
        for position in range(start, start + want):
            scores, reads = self.score(tokens[:position], position)
            rows += reads[-1]
            if self.doubt is not None and stops(self.doubt(scores), doubts):
                break
            drawn.append(self.rule.draw(scores, position, 0))
            tokens[position] = drawn[-1].token[0]
        flags = torch.cat(doubts).tolist() if doubts else []
        return Burst(drawn[: flags.index(True)] if any(flags) else drawn, rows)


def stops(doubt: Tensor, doubts: list[Tensor]) -> bool:
    """Note a doubt [1]; whether to stop here, which only a CPU knows without waiting."""
    doubts.append(doubt)
    return doubt.device.type == "cpu" and bool(doubt)


@dataclass(frozen=True)
class Judging:
    """Judges by scores and rule, in doubt about the tokens it keeps and its own; one word to the host."""

    score: Score
    rule: AcceptanceRule
    doubt: Doubt | None

    def __call__(self, tokens: Tensor, first: int, drawn: Sequence[Drawn], number: int) -> Judged:
        scores, reads = self.score(tokens, first)
        waiting = Waiting(tokens[first:], [each.scores for each in drawn], first, number)
        verdict = self.rule.verify(scores, waiting)
        doubts = [] if self.doubt is None else [self.doubt(scores)]
        told = [verdict.kept, verdict.token, waiting.tokens, *doubts]
        kept, token, *rest = listed(told, [verdict.sound, *(each.sound for each in drawn)])
        asked, asks = rest[: len(drawn)], any(rest[len(drawn) :][: kept + 1])
        return Judged(asked, kept, token, verdict.scores, verdict.sound, asks, reads)


def in_turn(stage: Stage, score: Score | None = None, write: Write | None = None) -> Verbs:
    """The naive verbs, which every faster way must equal, or with a faster `score` or `write`."""
    score = score or InTurn(stage.reader, stage.head, Dice(stage.rule.sampling.seed))
    return Verbs(write or StepByStep(score, stage.rule, stage.doubt), Judging(score, stage.rule, stage.doubt))


@dataclass(frozen=True, eq=False)
class Stage:
    """A reader, a head on its rows and a rule; acts once `every` tokens wait below it, or the stage below asks.

    A stage asks where its `doubt` says so: stage 0 before it draws the next token, which ends its burst, a
    verifier after it has judged, about the tokens it keeps and its own. `way` chooses the verbs, once, as the
    stage is made.
    """

    reader: Reader
    head: Head
    rule: AcceptanceRule
    every: int = 1
    doubt: Doubt | None = None
    way: Callable[[Stage], Verbs] = in_turn
    write: Write = field(init=False, repr=False)
    judge: Judge = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, verb in self.way(self)._asdict().items():
            object.__setattr__(self, name, verb)

    _replace = replace

"""A stage of the cascade: a reader, a head on its rows, a rule, a doubt, and its two verbs, write and judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import AcceptanceRule, Drawn, ScriptedAcceptance, Waiting
from flashspec.heads.base import Head
from flashspec.models.reader import Reader, Reads
from flashspec.sampling import Scores


class Judged(NamedTuple):
    """The verdict on the tokens `asked`, on the host: how many are accepted, the token after them, warped scores of all
    rows, whether they were free of NaN, whether the stage above should act early, and the rows read."""

    asked: list[int]
    kept: int
    token: int
    scores: Scores
    sound: Tensor
    asks: bool
    reads: Reads


Score = Callable[[Tensor, int], tuple[Scores, Reads]]
Write = Callable[[Tensor, int, int], tuple[list[Drawn], int]]
Doubt = Callable[[Scores], Tensor]


def unsure(threshold: float | None) -> Doubt | None:
    """In doubt where the largest probability is below a threshold, None without one; ValueError for an impossible one.

    Stopping before a draw depends on the prefix alone and keeps the distribution (Leviathan et al. 2023, section 2.3).
    """
    if threshold is None:
        return None
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"a threshold of doubt is a probability in [0, 1], got {threshold}")
    return lambda scores: scores.logits.softmax(-1).amax(-1) < threshold


def listed(numbers: Sequence[Tensor], sound: Sequence[Tensor]) -> list[int]:
    """Numbers on the host, in one transfer with the flags; FloatingPointError where a flag is False."""
    count = sum(map(len, numbers))
    packed = torch.cat([*numbers, *sound]).tolist()
    if not all(packed[count:]):
        raise FloatingPointError("a model gave NaN logits; check the checkpoint, or load it with dtype='float32'")
    return packed[:count]


def stops(doubt: Tensor, doubts: list[Tensor]) -> bool:
    """Record a doubt [1] and return whether to stop here, which only a CPU knows without waiting."""
    doubts.append(doubt)
    return doubt.is_cpu and bool(doubt)


@dataclass(frozen=True, eq=False)
class Stage:
    """A reader, a head on its rows and a rule; acts once `every` tokens wait below it, or when the stage below asks.

    A stage asks when its `doubt` says so: stage 0 before a draw, which ends its burst; a verifier after a check, about the
    accepted tokens and its own. `way`, if given, picks faster verbs, which must equal its own, when the stage is made.
    """

    reader: Reader
    head: Head
    rule: AcceptanceRule
    every: int = 1
    doubt: Doubt | None = None
    way: Callable[[Stage], tuple[Score | None, Write | None]] | None = None
    fast_score: Score | None = field(init=False, repr=False)
    fast_write: Write | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fast_score, fast_write = self.way(self) if self.way else (None, None)
        vars(self).update(fast_score=fast_score, fast_write=fast_write)

    _replace = replace

    def score(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        """Read the unread part of tokens [n], then score the rows that predict positions `first` to n."""
        if self.fast_score:
            return self.fast_score(tokens, first)
        reads = self.reader.read(tokens)
        return self.head(self.reader.rows[first - 1 : len(tokens)]), reads

    def write(self, tokens: Tensor, start: int, want: int) -> tuple[list[Drawn], int]:
        """Write up to `want` tokens into tokens [room] from position `start` on, fewer if in doubt.

        Returns them and how many rows the reader read. Never waits for an accelerator unless there are doubts: then a burst is
        cut afterwards, with one wait.
        """
        if self.fast_write:
            return self.fast_write(tokens, start, want)
        doubts, drawn, rows = list[Tensor](), list[Drawn](), 0
        for position in range(start, start + want):
            scores, reads = self.score(tokens[:position], position)
            rows += reads[-1]
            if self.doubt is not None and stops(self.doubt(scores), doubts):
                break
            drawn.append(self.rule.draw(scores, position, 0))
            tokens[position] = drawn[-1].token[0]
        flags = torch.cat(doubts).tolist() if doubts else []
        return drawn[: flags.index(True)] if any(flags) else drawn, rows

    def judge(self, tokens: Tensor, first: int, drawn: Sequence[Drawn], number: int) -> Judged:
        """Check tokens [n] from position `first` on as stage `number`; waits once. FloatingPointError for NaN."""
        scores, reads = self.score(tokens, first)
        waiting = Waiting(tokens[first:], [each.scores for each in drawn], first, number)
        verdict = self.rule.verify(scores, waiting)
        doubts = [] if self.doubt is None else [self.doubt(scores)]
        told = [verdict.kept, verdict.token, waiting.tokens, *doubts]
        kept, token, *rest = listed(told, [verdict.sound, *(each.sound for each in drawn)])
        asked, asks = rest[: len(drawn)], any(rest[len(drawn) :][: kept + 1])
        return Judged(asked, kept, token, verdict.scores, verdict.sound, asks, reads)


def scripted(stages: list[Stage], curve: Sequence[float]) -> list[Stage]:
    """The same stages with each verifier's verdicts scripted by the curve: true costs, meaningless text."""
    lower, *upper = stages
    if not upper:
        raise ValueError("plain decoding verifies nothing; script a method with a draft")
    return [lower, *(stage._replace(rule=ScriptedAcceptance(stage.rule, curve)) for stage in upper)]

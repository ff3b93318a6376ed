"""A stage of the cascade: a reader, a head on its rows, a rule, a doubt, and its two verbs, write and judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import AcceptanceRule, Drawn, ScriptedAcceptance, Waiting
from flashspec.heads.base import Head
from flashspec.models.reader import Reader, Reads, read_together
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
Asked = tuple[Tensor, int, Sequence[Drawn]]  # tokens [n], from which position they wait, and how they were drawn


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
        return write_together([self], [tokens], [start], [want])[0]

    def judge(self, tokens: Tensor, first: int, drawn: Sequence[Drawn], number: int) -> Judged:
        """Check tokens [n] from position `first` on as stage `number`; waits once. FloatingPointError for NaN."""
        return judge_together([self], [(tokens, first, drawn)], number)[0]

    def verdict(self, scores: Scores, reads: Reads, text: Asked, number: int) -> Judged:
        """What follows from the scores of rows that predict positions `first` to n."""
        tokens, first, drawn = text
        waiting = Waiting(tokens[first:], [each.scores for each in drawn], first, number)
        verdict = self.rule.verify(scores, waiting)
        doubts = [] if self.doubt is None else [self.doubt(scores)]
        told = [verdict.kept, verdict.token, waiting.tokens, *doubts]
        kept, token, *rest = listed(told, [verdict.sound, *(each.sound for each in drawn)])
        asked, asks = rest[: len(drawn)], any(rest[len(drawn) :][: kept + 1])
        return Judged(asked, kept, token, verdict.scores, verdict.sound, asks, reads)


def score_together(stages: Sequence[Stage], texts: Sequence[Tensor], firsts: Sequence[int]) -> list[tuple[Scores, Reads]]:
    """What the `score` of each copy of one stage gives for its own text [n]; they read and score all rows at once."""
    each = list(zip(stages, texts, firsts, strict=True))
    if len(stages) == 1 or type(stages[0].head).learn is not Head.learn:  # what each text has taught its head
        return [stage.score(text, first) for stage, text, first in each]
    reads = read_together([stage.reader for stage in stages], texts)
    rows = [stage.reader.rows[first - 1 : len(text)] for stage, text, first in each]
    scores, ends = stages[0].head(torch.cat(rows)), pairwise(accumulate(map(len, rows), initial=0))
    return [(scores.part(*end), read) for end, read in zip(ends, reads, strict=True)]


def write_together(
    stages: Sequence[Stage], texts: Sequence[Tensor], starts: Sequence[int], wants: Sequence[int]
) -> list[tuple[list[Drawn], int]]:
    """What the `write` of each copy of one stage does with its own text [room], where several write token by token."""
    if len(stages) == 1 and stages[0].fast_write:
        return [stages[0].fast_write(texts[0], starts[0], wants[0])]
    drawn, doubts, rows = ([list[Any]() for _ in stages] for _ in range(3))
    going = list(range(len(stages)))
    for j in range(max(wants)):
        if not (going := [i for i in going if j < wants[i]]):
            break
        ends = {i: starts[i] + j for i in going}
        begun = [texts[i][:end] for i, end in ends.items()]
        found = score_together([stages[i] for i in going], begun, [*ends.values()])
        for (i, end), (scores, reads) in zip(ends.items(), found, strict=True):
            stage = stages[i]
            rows[i].append(reads[-1])
            if stage.doubt is not None and stops(stage.doubt(scores), doubts[i]):
                going.remove(i)
                continue
            drawn[i].append(stage.rule.draw(scores, end, 0))
            texts[i][end] = drawn[i][-1].token[0]
    flags = [torch.cat(each).tolist() if each else [] for each in doubts]
    kept = [own[: flag.index(True)] if any(flag) else own for own, flag in zip(drawn, flags, strict=True)]
    return list(zip(kept, map(sum, rows), strict=True))


def judge_together(stages: Sequence[Stage], asked: Sequence[Asked], number: int) -> list[Judged]:
    """What the `judge` of each copy of one stage says about its own text."""
    found = score_together(stages, [text for text, *_ in asked], [first for _, first, _ in asked])
    each = zip(stages, found, asked, strict=True)
    return [stage.verdict(*scored, text, number) for stage, scored, text in each]


def scripted(stages: list[Stage], curve: Sequence[float]) -> list[Stage]:
    """The same stages with each verifier's verdicts scripted by the curve: true costs, meaningless text."""
    lower, *upper = stages
    if not upper:
        raise ValueError("plain decoding verifies nothing; script a method with a draft")
    return [lower, *(stage._replace(rule=ScriptedAcceptance(stage.rule, curve)) for stage in upper)]

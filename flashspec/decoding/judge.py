"""How a stage judges what waits below it: reader, head and rule in turn, or over static buffers with one word to the host."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.decoding.burst import writer_of
from flashspec.decoding.captured import captured_check, records_check
from flashspec.decoding.rules import Waiting
from flashspec.decoding.settle import Judged, listed
from flashspec.scores import Dice, Scores


class Judge(Protocol):
    """Re-scores waiting tokens."""

    def judge(self, tokens: Tensor, first: int, proposals: list[Scores], sound: list[Tensor]) -> Judged:
        """The verdict on tokens [n] from position `first` on, drawn from `proposals`; `sound` are the drafts' flags, all so far.

        Raises FloatingPointError where a model gave NaN.
        """


class InTurn(NamedTuple):
    """Reader, head and rule of stage `number` in turn, for every stage there is; reader and head in one kernel call where a
    `writer` serves them."""

    stage: Any
    number: int
    writer: kernels.Writer | None = None

    def judge(self, tokens: Tensor, first: int, proposals: list[Scores], sound: list[Tensor]) -> Judged:
        scores = self._scores(tokens, first) if self.writer is None else self._at_once(self.writer, tokens, first)
        asked, rule = listed(tokens[first:], sound), self.stage.rule
        return Judged(asked, rule.verify(scores, Waiting(asked, proposals, first, self.number)), scores)

    def _scores(self, tokens: Tensor, first: int) -> Scores:
        stage = self.stage
        rows = stage.reader.read(tokens)[first - 1 :]
        return stage.head(rows, torch.arange(first, len(tokens) + 1), Dice(stage.rule.sampling.seed))

    def _at_once(self, writer: kernels.Writer, tokens: Tensor, first: int) -> Scores:
        reader, stop = self.stage.reader, len(tokens)
        reader.check_room(stop)
        scores = writer.check(kernels.Place(tokens, reader.rows, reader.seen, first - 1, stop - first + 1))
        reader.advance(stop)
        return Scores(*scores)


def judge_of(stage: Any, number: int) -> Judge:
    """The fastest way to judge that serves this stage."""
    return captured_check(stage, number) if records_check(stage) else InTurn(stage, number, writer_of(stage))

"""Bursts and scores over static buffers: recorded once as CUDA graphs and replayed without the host.

A step reads tokens in place on the device and takes its position from a tensor. With FLASHSPEC_GRAPHS "eager" it is called
without recording: the twin that a recording must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from flashspec.decoding.rules import AcceptanceRule, Drawn
from flashspec.decoding.stages import Burst, Score, Stage, Write
from flashspec.heads.base import Head, WeightHead
from flashspec.heads.dense import DenseHead
from flashspec.heads.index import IndexHead
from flashspec.models.graphs import LARGEST, FixedEngine, Replay
from flashspec.models.reader import Reads, SpanReader
from flashspec.sampling import Dice, Scores


def replayed(stage: Stage) -> tuple[Score | None, Write | None] | None:
    """Replayed scores of dense heads, and replayed bursts where no doubt can end them; None for anything else."""
    reader, head = stage.reader, stage.head
    known = isinstance(head, WeightHead) and not isinstance(head, IndexHead) and isinstance(head.weight, Tensor)
    if not (known and isinstance(reader, SpanReader) and isinstance(reader.engine, FixedEngine)):
        return None
    score = CapturedScore(reader, head) if isinstance(head, DenseHead) else None
    alone = reader.below is None and stage.doubt is None
    return score, CapturedBurst(reader, head, stage.rule) if alone else None


class CapturedScore:
    """Reads and scores at fixed shapes in one replay: the static side of a reader, with its tokens by position."""

    def __init__(self, reader: SpanReader, head: Head) -> None:
        self.reader, self.engine, self.head = reader, cast(FixedEngine, reader.engine), head
        self.tokens = torch.zeros(reader.context + 1, dtype=torch.int64, device=reader.rows.device)
        self._steps: dict[tuple[int, ...], Callable[[], Any]] = {}

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        stop = len(tokens)
        self.reader.check_room(stop)
        n, reads = self.take(tokens, first, stop)
        self.engine.begin.fill_(stop - n)
        scores = kept(self.run(n, stop - first + 1, self.engine.keys(stop)))
        self.reader.advance(stop)
        return scores, reads

    def take(self, tokens: Tensor, first: int, stop: int) -> tuple[int, Reads]:
        """Copy tokens up to `stop`; returns how many of them a step must read, the rows already read below, and the rows of all
        tokens if they exceed a fixed shape."""
        reader = self.reader
        first = min(first, reader.seen)
        self.tokens[first:stop] = tokens[first:stop]
        if stop - reader.seen > LARGEST:
            return 0, reader.read(tokens[:stop])
        return stop - reader.seen, (*(() if reader.below is None else reader.below.read(tokens[:stop])), stop - reader.seen)

    def run(self, *shape: int) -> Any:
        """The result of a step of this shape, recorded first if the shape is new."""
        if shape not in self._steps:
            step = self.step(*shape)
            self._steps[shape] = Replay(step, self.tokens.device) if self.engine.record else step
        return self._steps[shape]()

    def step(self, n: int, rows: int, keys: int) -> Callable[[], Any]:
        """A function of `begin` alone that reads n tokens and scores so many of the newest rows."""
        engine, reader, device = self.engine, self.reader, self.tokens.device
        forward = engine.forward(n, keys)
        fresh, newest = torch.arange(n, device=device), torch.arange(1 - rows, 1, device=device)

        def score() -> Scores:
            if n:
                places = engine.begin + fresh
                x = engine.embed(self.tokens[places]) if reader.below is None else reader.below.trunk[places]
                reader.rows.index_copy_(0, places, forward(x))
            places = engine.begin + n + newest
            return self.head(reader.rows[places - 1], places, Dice(0))

        return score


class CapturedBurst(CapturedScore):
    """Drafts a burst step by step at fixed shapes: read, score, draw and write, one replay for each token."""

    def __init__(self, reader: SpanReader, head: Head, rule: AcceptanceRule) -> None:
        super().__init__(reader, head)
        self.rule = rule

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, start: int, want: int) -> Burst:  # type: ignore[override]
        if not want:
            return Burst([], 0)
        self.reader.check_room(start + want - 1)
        drawn, (n, reads) = list[Drawn](), self.take(tokens, start, start)
        for position in range(start, start + want):
            self.engine.begin.fill_(position - n)
            made = self.run(n, 1, self.engine.keys(position))
            tokens[position : position + 1] = made.token
            drawn.append(Drawn(tokens[position : position + 1], kept(made.scores), made.sound.clone()))
            self.reader.advance(position)
            n = 1
        return Burst(drawn, reads[-1] + want - 1)

    def step(self, n: int, rows: int, keys: int) -> Callable[[], Any]:
        """Reads, scores the newest row, draws and writes."""
        score = super().step(n, rows, keys)

        def step() -> Drawn:
            scores, place = score(), self.engine.begin[None] + n
            drawn = self.rule.draw(scores, place, 0)
            self.tokens.index_copy_(0, place, drawn.token)
            return drawn

        return step


def kept(scores: Scores) -> Scores:
    """A copy that the next replay does not overwrite."""
    return Scores(None if scores.ids is None else scores.ids.clone(), scores.logits.clone())

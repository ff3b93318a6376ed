"""How a stage acts: replayed on CUDA, in one call of the kernels on the CPU, or step by step.

A replayed step reads tokens in place and takes its position from a tensor: recorded as a CUDA graph, it runs without the
host. With FLASHSPEC_GRAPHS "eager" it is called without recording: the twin that a recording must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.decoding.rules import AcceptanceRule, Drawn, GumbelCoupling, SpeculativeSampling
from flashspec.decoding.stages import Score, Stage, Write
from flashspec.heads.base import DenseHead, Head, WeightHead
from flashspec.heads.candidates import IndexHead
from flashspec.models.engine import LARGEST, FixedEngine, KernelEngine
from flashspec.models.reader import Reads, SpanReader
from flashspec.sampling import Scores


def fastest(stage: Stage) -> tuple[Score | None, Write | None]:
    """The fastest ways to score and to write that serve this stage, None where it acts step by step.

    No burst is written at once where a doubt can end it, or above another reader.
    """
    reader, head = stage.reader, stage.head
    if type(reader) is not SpanReader or not isinstance(head, WeightHead):
        return None, None
    alone = reader.below is None and stage.doubt is None
    fixed = isinstance(head.weight, Tensor) and not isinstance(head, IndexHead)
    if fixed and isinstance(reader.engine, FixedEngine):
        score = CapturedScore(reader, head) if isinstance(head, DenseHead) else None
        return score, CapturedBurst(reader, head, stage.rule) if alone else None
    before = None if reader.below is None else reader.below.trunk
    odd = before is not None and before.dtype != reader.rows.dtype
    if odd or not isinstance(reader.engine, KernelEngine) or not head.scoring:
        return None, None
    writer, rule = reader.engine.writer(head.scoring, before), stage.rule
    burst = CompiledBurst(reader, writer, rule) if alone and drawn_by_kernels(rule, head.scoring) else None
    return CompiledScore(reader, writer), burst


def drawn_by_kernels(rule: AcceptanceRule, scoring: kernels.Scoring) -> TypeGuard[GumbelCoupling]:
    """Whether the kernels draw as this rule does: one of our own rules, no top-k or top-p, supported widths."""
    if not isinstance(rule, GumbelCoupling) or type(rule).draw not in (GumbelCoupling.draw, SpeculativeSampling.draw):
        return False
    fits = scoring.columns % kernels.WIDTH == 0 and (scoring.clustered or scoring.columns == rule.vocab_size)
    return fits and rule.sampling.top_k == 0 and rule.sampling.top_p == 1


@dataclass(frozen=True)
class CompiledScore:
    """Reads and scores in one call, once the reader below has read what it lacks."""

    reader: SpanReader
    writer: kernels.Writer

    def __call__(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        reader, stop = self.reader, len(tokens)
        lower = reader.lower(tokens)
        scores = self.writer.check(kernels.Stretch(tokens, reader.rows, reader.seen, first - 1, stop - first + 1))
        return Scores(*scores), (*lower, reader.advance(stop))


@dataclass(frozen=True)
class CompiledBurst:
    """Writes a burst in one call."""

    reader: SpanReader
    writer: kernels.Writer
    rule: GumbelCoupling

    def __call__(self, tokens: Tensor, start: int, want: int) -> tuple[list[Drawn], int]:
        if not want:
            return [], 0
        reader, stop = self.reader, start + want - 1
        reader.lower(tokens[:stop])
        law = self.rule.law(torch.arange(start, start + want), 0)
        ids, logits, sound = self.writer(kernels.Stretch(tokens, reader.rows, reader.seen, start, want), law)
        rows, token, scores = reader.advance(stop), tokens[start : start + want].clone(), Scores(ids, logits)
        return [Drawn(token[j : j + 1], scores.row(j), sound[j : j + 1]) for j in range(want)], rows


class CapturedScore:
    """Reads and scores at fixed shapes in one replay; its tokens are stored by position."""

    def __init__(self, reader: SpanReader, head: Head) -> None:
        self.reader, self.engine, self.head = reader, cast(FixedEngine, reader.engine), head
        self.tokens = torch.zeros(reader.context + 1, dtype=torch.int64, device=reader.rows.device)
        self._steps: dict[tuple[int, ...], Callable[[], Any]] = {}

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        stop = len(tokens)
        n, reads = self.take(tokens, first, stop)
        self.engine.begin.fill_(stop - n)
        scores = kept(self.run(n, stop - first + 1, self.engine.keys(stop)))
        self.reader.advance(stop)
        return scores, reads

    def take(self, tokens: Tensor, first: int, stop: int) -> tuple[int, Reads]:
        """Copy tokens up to `stop`; returns how many a step must read, and the rows read in all."""
        reader, lower = self.reader, self.reader.lower(tokens[:stop])
        first, new = min(first, reader.seen), stop - reader.seen
        self.tokens[first:stop] = tokens[first:stop]
        if new > LARGEST:  # more than a fixed shape holds
            return 0, (*lower, reader.read(tokens[:stop])[-1])
        return new, (*lower, new)

    def run(self, *shape: int) -> Any:
        """The result of a step of this shape, recorded first if the shape is new."""
        if shape not in self._steps:
            self._steps[shape] = self.engine.repeatable(self.step(*shape))
        return self._steps[shape]()

    def step(self, n: int, rows: int, keys: int) -> Callable[[], Any]:
        """A function of `begin` alone that reads n tokens and scores so many of the newest rows."""
        engine, reader, device = self.engine, self.reader, self.tokens.device
        forward = engine.forward(n, keys)
        fresh, newest = torch.arange(n, device=device), torch.arange(1 - rows, 1, device=device)

        def score() -> Scores:
            if n:
                places = engine.begin + fresh
                below, dtype = reader.below, reader.rows.dtype
                x = reader.model.embed(self.tokens[places]).to(dtype) if below is None else below.trunk[places]
                reader.rows.index_copy_(0, places, forward(x))
            return self.head(reader.rows[engine.begin + n + newest - 1])

        return score


class CapturedBurst(CapturedScore):
    """Drafts a burst step by step at fixed shapes: read, score, draw and write, one replay for each token."""

    def __init__(self, reader: SpanReader, head: Head, rule: AcceptanceRule) -> None:
        super().__init__(reader, head)
        self.rule = rule

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, start: int, want: int) -> tuple[list[Drawn], int]:  # type: ignore[override]
        if not want:
            return [], 0
        self.reader.lower(tokens[: start + want - 1])
        drawn, (n, reads) = list[Drawn](), self.take(tokens, start, start)
        for position in range(start, start + want):
            self.engine.begin.fill_(position - n)
            made = self.run(n, 1, self.engine.keys(position))
            tokens[position : position + 1] = made.token
            drawn.append(Drawn(tokens[position : position + 1], kept(made.scores), made.sound.clone()))
            self.reader.advance(position)
            n = 1
        return drawn, reads[-1] + want - 1

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

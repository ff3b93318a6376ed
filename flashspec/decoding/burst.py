"""How stage 0 writes a burst: token by token through reader, head and rule, the whole burst in one kernel call on a CPU, or step
by step over static buffers on CUDA.

All give the same tokens and the same scores, on a CPU bit for bit; the loop does not know which one it has.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.decoding.captured import captured_burst, records_burst
from flashspec.decoding.rules import Drawn, GumbelCoupling, SpeculativeSampling
from flashspec.model.engine import KernelEngine
from flashspec.model.reader import SpanReader
from flashspec.scores import Dice, Scores


class Burst(Protocol):
    """Writes tokens behind those that are there."""

    def write(self, tokens: Tensor, start: int, want: int) -> list[Drawn]:
        """Put up to `want` tokens into tokens [room] from position `start` on, and tell how each was drawn; fewer where the
        stage is in doubt. A burst of nothing reads nothing. No host synchronisation on an accelerator, but one where there are
        doubts."""


class StepByStep:
    """Reader, head and rule in turn, for every stage there is. A stage in doubt stops before the draw; off the CPU its
    burst is computed whole and cut in one transfer."""

    def __init__(self, stage: Any) -> None:
        self.stage, self.dice = stage, Dice(stage.rule.sampling.seed)

    def write(self, tokens: Tensor, start: int, want: int) -> list[Drawn]:
        stage, doubts, drawn = self.stage, list[Tensor](), list[Drawn]()
        for position in range(start, start + want):
            rows = stage.reader.read(tokens[:position])[position - 1 :]
            scores = stage.head(rows, torch.tensor([position]), self.dice)
            if stage.doubt is not None and _stops(stage.doubt(scores), doubts):
                break
            drawn.append(stage.rule.draw(scores, position, 0))
            tokens[position] = drawn[-1].token[0]
        return drawn[: _first(doubts)] if doubts else drawn


def _stops(doubt: Tensor, doubts: list[Tensor]) -> bool:
    """Note a doubt [1]; whether to stop here, which only a CPU knows without waiting."""
    doubts.append(doubt)
    return doubt.device.type == "cpu" and bool(doubt)


def _first(doubts: list[Tensor]) -> int:
    """Tokens before the first doubt, all where there is none."""
    flags = torch.cat(doubts).tolist()
    return next((i for i, doubt in enumerate(flags) if doubt), len(flags))


class Compiled(NamedTuple):
    """The whole burst in one call of the CPU kernels."""

    reader: SpanReader
    writer: kernels.Writer
    rule: GumbelCoupling | SpeculativeSampling

    def write(self, tokens: Tensor, start: int, want: int) -> list[Drawn]:
        if not want:
            return []
        reader, stop = self.reader, start + want - 1
        reader.check_room(stop)
        law = self.rule.law(list(range(start, start + want)), 0)
        ids, logits, sound = self.writer(kernels.Place(tokens, reader.rows, reader.seen, start, want), law)
        reader.advance(stop)
        token = tokens[start : start + want].clone()
        scores = [Scores(None if ids is None else ids[j : j + 1], logits[j : j + 1]) for j in range(want)]
        return [Drawn(token[j : j + 1], scores[j], sound[j : j + 1]) for j in range(want)]


def burst_of(stage: Any) -> Burst:
    """The fastest burst that serves this stage."""
    if records_burst(stage):
        return captured_burst(stage)
    writer = writer_of(stage)
    if writer is None or stage.doubt is not None or not _drawn_by_kernels(stage.rule, writer.scoring):
        return StepByStep(stage)
    return Compiled(stage.reader, writer, stage.rule)


def writer_of(stage: Any) -> kernels.Writer | None:
    """A stage's layers and head as the CPU kernels see them, None where they do not serve it."""
    reader, scoring = stage.reader, getattr(stage.head, "scoring", None)
    engine = getattr(reader, "engine", None)
    if type(reader) is not SpanReader or reader.below is not None or not isinstance(engine, KernelEngine) or scoring is None:
        return None
    return engine.writer(scoring)


def _drawn_by_kernels(rule: Any, scoring: kernels.Scoring) -> bool:
    """Whether the kernels draw as this rule does: its draw is one of ours, nothing is cut off, and the widths fit."""
    ours = getattr(type(rule), "draw", None) in (GumbelCoupling.draw, SpeculativeSampling.draw)
    fits = scoring.columns % kernels.WIDTH == 0 and (scoring.clustered or scoring.columns == rule.vocab_size)
    return ours and fits and rule.sampling.top_k == 0 and rule.sampling.top_p == 1

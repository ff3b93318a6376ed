"""Stages whose layers, head and draws the CPU kernels compute together: a whole burst, or reading and scoring, in one call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashspec import kernels
from flashspec.decoding.rules import AcceptanceRule, Drawn, GumbelCoupling, SpeculativeSampling
from flashspec.decoding.stages import Burst, Stage
from flashspec.models.engine import KernelEngine
from flashspec.models.reader import Reads, SpanReader
from flashspec.sampling import Scores


@dataclass(frozen=True)
class CompiledScore:
    """Reads and scores in one call."""

    reader: SpanReader
    writer: kernels.Writer

    def __call__(self, tokens: Tensor, first: int) -> tuple[Scores, Reads]:
        reader, stop = self.reader, len(tokens)
        reader.check_room(stop)
        scores = self.writer.check(kernels.Stretch(tokens, reader.rows, reader.seen, first - 1, stop - first + 1))
        return Scores(*scores), (reader.advance(stop),)


@dataclass(frozen=True)
class CompiledBurst:
    """Writes a burst in one call."""

    reader: SpanReader
    writer: kernels.Writer
    rule: GumbelCoupling | SpeculativeSampling

    def __call__(self, tokens: Tensor, start: int, want: int) -> Burst:
        if not want:
            return Burst([], 0)
        reader, stop = self.reader, start + want - 1
        reader.check_room(stop)
        law = self.rule.law(list(range(start, start + want)), 0)
        ids, logits, sound = self.writer(kernels.Stretch(tokens, reader.rows, reader.seen, start, want), law)
        rows, token = reader.advance(stop), tokens[start : start + want].clone()
        scores = [Scores(None if ids is None else ids[j : j + 1], logits[j : j + 1]) for j in range(want)]
        return Burst([Drawn(token[j : j + 1], scores[j], sound[j : j + 1]) for j in range(want)], rows)


def writer_of(stage: Stage) -> tuple[SpanReader, kernels.Writer] | None:
    """A stage's reader, and its layers and head as the kernels see them; None where they do not serve it."""
    reader, scoring = stage.reader, getattr(stage.head, "scoring", None)
    if type(reader) is not SpanReader or reader.below is not None or not isinstance(reader.engine, KernelEngine):
        return None
    return None if scoring is None else (reader, reader.engine.writer(scoring))


def drawn_by_kernels(rule: AcceptanceRule, scoring: kernels.Scoring) -> GumbelCoupling | SpeculativeSampling | None:
    """The rule where the kernels draw as it does: its draw is one of ours, nothing is cut off, and the widths fit."""
    if not isinstance(rule, GumbelCoupling | SpeculativeSampling):
        return None
    ours = type(rule).draw in (GumbelCoupling.draw, SpeculativeSampling.draw)
    fits = scoring.columns % kernels.WIDTH == 0 and (scoring.clustered or scoring.columns == rule.vocab_size)
    return rule if ours and fits and rule.sampling.top_k == 0 and rule.sampling.top_p == 1 else None

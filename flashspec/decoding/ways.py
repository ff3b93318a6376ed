"""How a stage acts: replayed on CUDA, in one call of the kernels on the CPU, or step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor

from flashspec import kernels
from flashspec.decoding.captured import replayed
from flashspec.decoding.rules import AcceptanceRule, Drawn, GumbelCoupling, SpeculativeSampling
from flashspec.decoding.stages import Burst, Score, Stage, Write
from flashspec.models.engine import KernelEngine
from flashspec.models.reader import Reads, SpanReader
from flashspec.sampling import Scores


def fastest(stage: Stage) -> tuple[Score | None, Write | None]:
    """The fastest ways that serve this stage, None where it acts step by step."""
    return replayed(stage) or compiled(stage)


def compiled(stage: Stage) -> tuple[Score | None, Write | None]:
    """Scores and bursts in one call each, None where the kernels do not serve the stage."""
    reader, scoring = stage.reader, getattr(stage.head, "scoring", None)
    if type(reader) is not SpanReader or not isinstance(reader.engine, KernelEngine) or not scoring:
        return None, None
    before = None if reader.below is None else reader.below.trunk
    if before is not None and before.dtype != reader.rows.dtype:
        return None, None
    writer, rule = reader.engine.writer(scoring, before), stage.rule
    alone = before is None and stage.doubt is None
    burst = CompiledBurst(reader, writer, rule) if alone and drawn_by_kernels(rule, scoring) else None
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
        reader.check_room(stop)
        lower = () if reader.below is None else reader.below.read(tokens)
        scores = self.writer.check(kernels.Stretch(tokens, reader.rows, reader.seen, first - 1, stop - first + 1))
        return Scores(*scores), (*lower, reader.advance(stop))


@dataclass(frozen=True)
class CompiledBurst:
    """Writes a burst in one call."""

    reader: SpanReader
    writer: kernels.Writer
    rule: GumbelCoupling

    def __call__(self, tokens: Tensor, start: int, want: int) -> Burst:
        if not want:
            return Burst([], 0)
        reader, stop = self.reader, start + want - 1
        reader.check_room(stop)
        law = self.rule.law(list(range(start, start + want)), 0)
        ids, logits, sound = self.writer(kernels.Stretch(tokens, reader.rows, reader.seen, start, want), law)
        rows, token, scores = reader.advance(stop), tokens[start : start + want].clone(), Scores(ids, logits)
        return Burst([Drawn(token[j : j + 1], scores.row(j), sound[j : j + 1]) for j in range(want)], rows)

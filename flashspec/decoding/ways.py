"""Which way a stage acts: its verbs are chosen here, once, when a method is built."""

from __future__ import annotations

from flashspec.decoding.captured import CapturedBurst, CapturedScore, fixed_reader
from flashspec.decoding.compiled import CompiledBurst, CompiledScore, drawn_by_kernels, writer_of
from flashspec.decoding.stages import InTurn, Judging, Score, Stage, StepByStep, Verbs, Write
from flashspec.heads.dense import DenseHead
from flashspec.sampling import Dice


def fastest(stage: Stage) -> Verbs:
    """The fastest verbs that serve this stage: replayed on CUDA, compiled on the CPU, else in turn."""
    served, write = _replayed(stage) or _compiled(stage)
    score = served or InTurn(stage.reader, stage.head, Dice(stage.rule.sampling.seed))
    return Verbs(write or StepByStep(score, stage.rule, stage.doubt), Judging(score, stage.rule, stage.doubt))


def _replayed(stage: Stage) -> tuple[Score | None, Write | None] | None:
    """Scores of dense heads, and bursts that nothing of the stage's own could end; None off fixed shapes."""
    reader = fixed_reader(stage)
    if reader is None:
        return None
    score = CapturedScore(reader, stage.head) if isinstance(stage.head, DenseHead) else None
    alone = reader.below is None and stage.doubt is None
    return score, CapturedBurst(reader, stage.head, stage.rule.sampling) if alone else None


def _compiled(stage: Stage) -> tuple[Score | None, Write | None]:
    found = writer_of(stage)
    if found is None:
        return None, None
    (reader, writer), rule = found, drawn_by_kernels(stage.rule, found[1].scoring)
    return CompiledScore(reader, writer), CompiledBurst(reader, writer, rule) if rule and stage.doubt is None else None

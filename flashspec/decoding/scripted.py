"""Simulated acceptance: real work with verdicts from a given curve. It gives a cost, never a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashspec.decoding.rules import AcceptanceRule, Drawn, Verdict, Waiting, prefix
from flashspec.decoding.stages import Stage
from flashspec.sampling import Dice, Scores


class ScriptedAcceptance:
    """Judges as `inner` does, at the same cost, then accepts the j-th waiting token with probability curve[j].

    Beyond the curve its last entry holds. Coin flips are functions of the seed and the position.
    """

    exact = False

    def __init__(self, inner: AcceptanceRule, curve: Sequence[float]) -> None:
        if not curve or not all(0 <= share <= 1 for share in curve):
            raise ValueError(f"an acceptance curve is one probability or more, each in [0, 1], got {tuple(curve)}")
        self.inner, self.curve, self.sampling = inner, tuple(curve), inner.sampling

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        return self.inner.draw(scores, position, stage)

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        verdict, places = self.inner.verify(scores, waiting), waiting.positions[:-1]
        flips = Dice(self.sampling.seed).uniform(places, waiting.stage, "accept")
        curve = torch.tensor([self.curve[min(j, len(self.curve) - 1)] for j in range(len(places))], dtype=torch.float64)
        kept, best = prefix(flips < curve).to(scores.logits.device), verdict.scores.logits.argmax(-1)
        return verdict._replace(kept=kept, token=verdict.scores.pick(best)[kept])


def scripted(stages: list[Stage], curve: Sequence[float]) -> list[Stage]:
    """The same stages, each verifier's verdicts scripted by the curve; the given ones are left as they are."""
    lower, *upper = stages
    if not upper:
        raise ValueError("plain decoding verifies nothing; script a method with a draft")
    return [lower, *(stage._replace(rule=ScriptedAcceptance(stage.rule, curve)) for stage in upper)]

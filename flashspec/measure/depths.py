"""Costs of models that are too large for this machine: measured at two depths, stretched in a straight line to the true one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.measure.clock import Plan
from flashspec.measure.costs import PairCosts, Place, Turn, measure_costs
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.model.memory import Form, free_bytes, weight_bytes
from flashspec.model.synthetic import is_awq, shape, synthetic
from flashspec.theory.checks import check_smaller

SHORT = (2, 4)
SHARE = 0.4
PAST = 128
FEW, TURNS = (1, 2, 4, 8), 3


class Cut(NamedTuple):
    """A shape by name, its true depth, and the two depths at which it is measured; both the true one where it fits."""

    name: str
    layers: int
    depths: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether the model is measured as it is."""
        return self.depths == (self.layers, self.layers)

    def stretched(self, low: float, high: float) -> float:
        """A time at the true depth from times at the two depths; never less than at the lower one."""
        if self.whole:
            return low
        slope = (high - low) / (self.depths[1] - self.depths[0])
        return low + max(0.0, slope) * (self.layers - self.depths[0])

    @property
    def label(self) -> str:
        """How its times came about."""
        return (
            self.name if self.whole else f"{self.name} (timed at {self.depths[0]} and {self.depths[1]} of {self.layers} layers)"
        )


def cut_of(name: str, memory: float) -> Cut:
    """A shape whole where its weights fit `memory` bytes, else at two small depths."""
    config = shape(name)
    form = Form(torch.bfloat16, 128 if is_awq(name) else 0)
    fits = weight_bytes(config, form) <= memory or config.layers <= SHORT[1]
    return Cut(name, config.layers, (config.layers, config.layers) if fits else SHORT)


def cuts_of(target: str, draft: str) -> tuple[Cut, Cut]:
    """How a pair of shapes is measured here; each model may take a share of the free memory."""
    check_smaller(shape(draft).body_parameters, shape(target).body_parameters)
    memory = SHARE * (free_bytes(torch.device("cpu")) or 8e9)
    return cut_of(target, memory), cut_of(draft, memory)


def shape_costs(cuts: tuple[Cut, Cut], writers: Sequence[Method], ks: Sequence[int], plan: Plan) -> PairCosts:
    """Costs of a pair of shapes with random weights: a step's cost depends on shapes, not on what the weights say.

    A pair that is stretched is slow: few lengths are timed, in few turns, and those between are interpolated.
    """
    if all(cut.whole for cut in cuts):
        return _costs_at(cuts, 0, writers, ks, plan)
    few, plan = spread(ks), replace(plan, repeats=min(TURNS, plan.repeats), warmup=1)
    low, high = (_costs_at(cuts, which, writers, few, plan) for which in (0, 1))
    pairs = zip(low.turns, high.turns, strict=True)
    return PairCosts(tuple(stretched_turn(cuts, *pair) for pair in pairs), low.ks)


def spread(ks: Sequence[int]) -> list[int]:
    """The shortest and the longest of these draft lengths, and a few between them."""
    return sorted({min(ks), max(ks), *(k for k in ks if k in FEW)})


def stretched_turn(cuts: tuple[Cut, Cut], low: Turn, high: Turn) -> Turn:
    """A turn at the true depths: each part stretched by the model that does it."""
    target, draft = cuts
    found = dict(low)
    for name, seconds in low.items():
        if name.startswith("burst "):
            found[name] = draft.stretched(seconds, high[name])
        elif name in ("step", "finalize") or name.startswith(("check ", "eager ")):
            found[name] = target.stretched(seconds, high[name])
    return found


def _costs_at(cuts: tuple[Cut, Cut], which: int, writers: Sequence[Method], ks: Sequence[int], plan: Plan) -> PairCosts:
    target, draft = (synthetic(cut.name, depth=cut.depths[which]) for cut in cuts)
    models = Models(target, draft)
    if any(writer.head.startswith("flash") for writer in writers):
        models._flash["draft"] = stand_in_flash(draft.head_weight, draft.norm, draft.config.vocab_size // 16 // 16)
    past = min(PAST, models.context // 2)
    ids = [number % target.config.vocab_size for number in range(past)]
    return measure_costs(models, writers, ks, Place(ids[: past // 2], ids[past // 2 :]), plan)

"""Costs of models that are too large for this machine: measured at two depths, stretched in a straight line to the true one.

The shallow model is the lowest layers of the deep one, and every part of the two is timed one behind the other, so that a
machine whose speed changes from second to second changes it for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from flashspec.decoding.method import Method
from flashspec.decoding.models import Models, check_pair
from flashspec.heads.base import Head
from flashspec.measure.clock import Plan
from flashspec.measure.costs import PairCosts, PairParts, Setting, Turn, measure_costs, parts_of, turns_of
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.models.memory import Form, free_bytes, weight_bytes
from flashspec.models.synthetic import is_awq, shape, synthetic
from flashspec.models.transformer import Transformer

SHORT = (1, 4)
SHARE = 0.4
PAST = 128
FEW = (1, 2, 4, 8)
SHALLOW = " shallow"


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
    check_pair(shape(draft), shape(target))
    memory = SHARE * (free_bytes(torch.device("cpu")) or 8e9)
    return cut_of(target, memory), cut_of(draft, memory)


def shape_costs(cuts: tuple[Cut, Cut], writers: Sequence[Method], ks: Sequence[int], plan: Plan) -> PairCosts:
    """Costs of a pair of shapes with random weights: a step's cost depends on shapes, not on what the weights say.

    A pair that is stretched is slow: few lengths are timed, without a warm-up before each, and those between are interpolated.
    """
    deep = _pair(cuts, writers)
    if all(cut.whole for cut in cuts):
        return measure_costs(deep, writers, ks, _setting(deep), plan)
    both = side_by_side(*(parts_of(models, writers, spread(ks), _setting(deep)) for models in (shallow(deep, cuts), deep)))
    return PairCosts(turns_of(lambda: stretched_turn(cuts, both.turn(warmup=0)), replace(plan, warmup=1)), both.ks)


def shallow(deep: Models, cuts: tuple[Cut, Cut]) -> Models:
    """The pair at the lower of its two depths, made of the lowest layers; weights, and the draft's head, are shared."""
    assert deep.draft is not None
    pairs = zip((deep.target, deep.draft), cuts, strict=True)
    target, draft = (model.with_layers(model.layers[: cut.depths[0]]) for model, cut in pairs)
    return _paired(target, draft, deep.heads)


def _paired(target: Transformer, draft: Transformer, heads: Mapping[tuple[str, str], Head]) -> Models:
    """Models whose true shapes are a target and its draft: the few layers of one may well be fewer than those of the other."""
    found = Models(target)
    found.draft = draft
    found.heads.update(heads)
    return found


def spread(ks: Sequence[int]) -> list[int]:
    """The shortest and the longest of these draft lengths, and a few between them."""
    return sorted({min(ks), max(ks), *(k for k in ks if k in FEW)})


def side_by_side(low: PairParts, high: PairParts) -> PairParts:
    """Two depths of one pair, each group of the deep one behind the same group of the shallow one (SHALLOW behind its names)."""
    pairs = zip(low.groups, high.groups, strict=True)
    return replace(high, groups=tuple({**{f"{name}{SHALLOW}": call for name, call in one.items()}, **two} for one, two in pairs))


def stretched_turn(cuts: tuple[Cut, Cut], both: Turn) -> Turn:
    """A turn at the true depths: each part stretched by the model that does it; a head alone is as timed."""
    found = {name: seconds for name, seconds in both.items() if not name.endswith(SHALLOW)}
    for name in (name for name in found if not name.startswith("head ")):
        cut = cuts[1] if name.startswith("burst ") else cuts[0]
        found[name] = cut.stretched(both[f"{name}{SHALLOW}"], found[name])
    return found


def _pair(cuts: tuple[Cut, Cut], writers: Sequence[Method]) -> Models:
    """Both models at the deeper of their two depths, with the heads that the writers need."""
    target, draft = (synthetic(cut.name, depth=cut.depths[1]) for cut in cuts)
    if not any(writer.head.startswith("flash") for writer in writers):
        return _paired(target, draft, {})
    head = stand_in_flash(draft.head_weight, draft.norm, draft.config.vocab_size // 16 // 16)
    return _paired(target, draft, {("draft", "flash"): head})


def _setting(models: Models) -> Setting:
    """Behind PAST tokens, or half the context where that is less."""
    past = min(PAST, models.context // 2)
    ids = [number % models.target.config.vocab_size for number in range(past)]
    return Setting(ids[: past // 2], ids[past // 2 :])

"""Speculative sampling prints the target's own law, by chi-square on joint three-token texts; broken variants are found.

Toy models have four ids and rows that are fixed functions of the prefix, 0.3 to 0.5 apart in total variation.
"""

from __future__ import annotations

import pytest
import torch
from prefixes import Make, caught, dense, distance, law, p_of, sparse, stack, weight, without_promotion

from flashspec import kernels
from flashspec.decoding import cascade
from flashspec.decoding.rules import Drawn, GumbelCoupling, SpeculativeSampling, TypicalAcceptance
from flashspec.sampling import Dice, Sampling, Scores, warp

TOP = dense(0)
NEAR = (1, 0)  # the toy model that drafts for model 0
SEEDS = 20_000


def test_the_toy_models_are_far_apart():
    for pair in ((weight(0), weight(*NEAR)), (weight(*NEAR), weight(2, *NEAR))):
        assert float(distance(*pair).min()) >= 0.3
    covered = torch.isfinite(sparse(*NEAR).scores.logits).sum(1)
    assert covered.tolist() == [2] * len(covered)


@pytest.mark.slow
@pytest.mark.parametrize("draft", [dense, sparse])
def test_two_stages_print_the_law_of_the_target(draft):
    assert p_of(stack([draft(*NEAR), TOP]), SEEDS, law(0)) > 1e-4


def three() -> Make:
    """Three stages; neighbours are as far apart as above."""
    return stack([dense(2, *NEAR), dense(*NEAR), TOP])


def test_three_stages_print_the_law_of_the_target():
    assert p_of(three(), 2000, law(0), new=4) > 1e-4


WARPS = [
    Sampling(0.7, rule="speculative"),
    Sampling(1.3, top_k=3, rule="speculative"),
    Sampling(1.0, top_p=0.8, rule="speculative"),
]


@pytest.mark.parametrize("sampling", WARPS, ids=str)
def test_warped_laws_are_kept_too(sampling):
    assert p_of(stack([dense(*NEAR), TOP]), 800, law(0, sampling), sampling=sampling) > 1e-4


@pytest.mark.parametrize("draft", [dense, sparse])
def test_the_coupling_prints_the_law_too(draft):
    assert p_of(stack([draft(*NEAR), TOP], GumbelCoupling), 1000, law(0)) > 1e-4


class OneNumber(Dice):
    """Accepts and draws the residual with the same random number (vllm-ascend 16370)."""

    def uniform(self, positions, stage, use):
        return super().uniform(positions, stage, "accept" if use == "residual" else use)


class SharedNumber(SpeculativeSampling):
    def __init__(self, sampling, vocab_size):
        super().__init__(sampling, vocab_size)
        self.dice = OneNumber(sampling.seed)


class NoResidual(SpeculativeSampling):
    """Draws the correction from p (openvino.genai 4490)."""

    def residual(self, p, q):
        return p


class Credulous(SpeculativeSampling):
    """Accepts whatever is put to it."""

    def accepts(self, p, q, tokens, numbers):
        return torch.ones_like(tokens, dtype=torch.bool)


class DenseClaim(SpeculativeSampling):
    """Draws from the ids a sparse head scored and claims the dense distribution (q is not the one sampled)."""

    def draw(self, scores, position, stage):
        drawn = super().draw(scores, position, stage)
        here = (weight(*NEAR)[scores.ids[0, 0]] == scores.logits[0, 0]).nonzero()[0]
        return Drawn(drawn.token, Scores(None, weight(*NEAR).T[here]), drawn.sound)


class RawClaim(SpeculativeSampling):
    """Draws at one temperature and claims the raw scores (DeepSpec 31)."""

    def draw(self, scores, position, stage):
        drawn = super().draw(Scores(scores.ids, scores.logits * 2), position, stage)
        return Drawn(drawn.token, warp(scores, self.sampling), drawn.sound)


class InPlace(SpeculativeSampling):
    """Overwrites the target's probabilities before they are used and promoted (vllm-ascend 2881)."""

    def accepts(self, p, q, tokens, numbers):
        found = super().accepts(p, q, tokens, numbers)
        p.clamp_(max=0.25)
        return found


BROKEN = {
    "shared random number": stack([dense(*NEAR), TOP], SharedNumber),
    "residual missing": stack([dense(*NEAR), TOP], NoResidual),
    "accepting always": stack([dense(*NEAR), TOP], Credulous),
    "typical acceptance": stack([dense(*NEAR), TOP], TypicalAcceptance),
    "dense q for a sparse draft": stack([sparse(*NEAR), TOP], [DenseClaim, SpeculativeSampling]),
    "q at another temperature": stack([dense(*NEAR), TOP], [RawClaim, SpeculativeSampling]),
    "target modified in place": stack([dense(*NEAR), TOP], [SpeculativeSampling, InPlace]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_control_a_broken_rule_is_caught(name):
    assert caught(BROKEN[name], law(0))


def test_the_control_a_cascade_without_promotion_is_caught(monkeypatch):
    monkeypatch.setattr(cascade, "promoted", without_promotion)
    assert caught(three(), law(0), new=4)


def test_the_control_a_shared_number_in_the_compiled_verdict_is_caught(monkeypatch):
    """The rule itself, whose verdict is one kernel call; broken rules above are judged in torch."""
    if not kernels.available():
        pytest.skip("no C compiler on this machine")

    def shared(self, waiting, numbers=SpeculativeSampling.numbers):
        found, m = numbers(self, waiting), len(waiting.tokens)
        return torch.cat([found[:m], found[:m], found[2 * m :]])

    monkeypatch.setattr(SpeculativeSampling, "numbers", shared)
    assert caught(stack([dense(*NEAR), TOP]), law(0))


def test_the_control_another_model_is_caught():
    assert caught(stack([dense(*NEAR), TOP]), law(5))

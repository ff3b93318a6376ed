"""Speculative sampling prints the target's own law, by chi-square on joint three-token texts; broken variants are found.

Toy models have four ids and rows that are fixed functions of the prefix, 0.3 to 0.5 apart in total variation; one hierarchy is
over the spans of a real model.
"""

import functools
from itertools import product

import pytest
import torch
from prefixes import PLAIN, caught, dense, distance, law, p_of, sparse, stack, weight, without_promotion
from toys import random_model

from flashspec import Method, Models, build, kernels
from flashspec.decoding import cascade
from flashspec.decoding.lookup import LookupHead, LookupReader, nothing_to_say
from flashspec.decoding.rules import Drawn, GumbelCoupling, SpeculativeSampling, TypicalAcceptance
from flashspec.decoding.stages import Stage, unsure
from flashspec.sampling import Dice, Sampling, Scores, warp

VOCAB = 4
NEAR = (1, 0)  # the toy model that drafts for model 0
TOP = dense(0)
DOUBT = unsure(0.5)


def test_the_toy_models_and_the_exits_are_far_apart():
    for pair in ((weight(0), weight(*NEAR)), (weight(*NEAR), weight(2, *NEAR))):
        assert float(distance(*pair).min()) >= 0.3
    assert set(torch.isfinite(sparse(*NEAR).scores.logits).sum(1).tolist()) == {2}
    assert own_law().sum() == pytest.approx(1.0)
    assert all(float((own_law(n) - own_law()).abs().sum()) / 2 > 0.2 for n in (1, 2))


def two(rules=SpeculativeSampling, draft=dense):
    return stack([draft(*NEAR), TOP], rules)


def three(doubt=None, middle=SpeculativeSampling):
    make = stack([dense(2, *NEAR), dense(*NEAR), TOP])

    def stages(sampling):
        bottom, mid, top = make(sampling)
        return [bottom._replace(doubt=doubt), mid._replace(doubt=doubt, rule=middle(sampling, VOCAB)), top]

    return stages


class Peeking:
    """In doubt where the very token that will be drawn is improbable: the draw decides whether it counts."""

    def __init__(self, rule, reader):
        self.rule, self.reader = rule, reader

    def __call__(self, scores):
        drawn = self.rule.draw(scores, self.reader.seen, 0)
        return drawn.scores.dense(VOCAB)[0, drawn.token] < 0.35


def doubting(doubt):
    make = stack([dense(*NEAR), TOP])

    def stages(sampling):
        draft, target = make(sampling)
        return [draft._replace(doubt=doubt(draft.rule, draft.reader)), target]

    return stages


class PrefixLookup(LookupReader):
    """Proposes id 1 whatever was read, so that every position has a one-hot proposal."""

    def read(self, tokens):
        reads = super().read(tokens)
        self.rows[: len(tokens)] = 1
        return reads


def looking_up(head=LookupHead, rule=SpeculativeSampling):
    reader, verifier = PrefixLookup(5), stack([TOP])
    return lambda sampling: [
        Stage(reader, head(VOCAB), rule(sampling, VOCAB), 1, nothing_to_say), verifier(sampling)[0]._replace(every=2),
    ]  # fmt: skip


@functools.cache
def small():
    model = random_model(5, layers=3, sharpness=1.5, vocab_size=VOCAB)
    for layer in model.layers[1:]:
        layer.mlp.down.weight.mul_(4.0)
    return model


@functools.cache
def own_law(exit_layer=3):
    model, joint = small(), torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for first, second in product(range(VOCAB), repeat=2):
        x = model.embed(torch.tensor([[0, first, second]]))
        for layer in model.layers[:exit_layer]:
            x = layer(x, model.rope)
        p = (model.norm(x[0]) @ model.head_weight.T).double().softmax(-1)
        joint[first, second] = p[0, first] * p[1, second] * p[2]
    return joint


def spans(n_d, n_i):
    stages = build(Method(exits=(1, 2), k=n_d, interval=n_i), Models(small()), PLAIN, 8)
    return lambda sampling: [stage._replace(rule=SpeculativeSampling(sampling, VOCAB)) for stage in stages]


WARPS = [Sampling(0.7, rule="speculative"), Sampling(1.3, 3, rule="speculative"), Sampling(1.0, 0, 0.8, rule="speculative")]
KEPT = {
    "two stages": lambda: p_of(two(), 4000, law(0)),
    "two stages, sparse": lambda: p_of(two(draft=sparse), 4000, law(0)),
    "three stages": lambda: p_of(three(), 2000, law(0), new=4),
    **{f"warped {w}": lambda w=w: p_of(two(), 800, law(0, w), sampling=w) for w in WARPS},
    "coupling": lambda: p_of(two(GumbelCoupling), 1000, law(0)),
    "coupling, sparse": lambda: p_of(two(GumbelCoupling, sparse), 1000, law(0)),
    "draft that doubts": lambda: p_of(doubting(lambda rule, reader: DOUBT), 800, law(0)),
    "middle that doubts": lambda: p_of(three(DOUBT), 800, law(0), new=4),
    "lookup": lambda: p_of(looking_up(), 800, law(0)),
    **{f"spans {n}": lambda n=n: p_of(spans(*n), 1000, own_law(), new=4) for n in ((1, 2), (2, 2), (1, 3))},
}


@pytest.mark.parametrize("name", KEPT)
def test_the_law_of_the_target_is_kept(name):
    assert KEPT[name]() > 1e-4


class OneNumber(Dice):
    """Accepts and draws the residual with the same random number (vllm-ascend 16370)."""

    def uniform(self, positions, stage, *uses):
        return super().uniform(positions, stage, *("accept" if use == "residual" else use for use in uses))


class DenseClaim(SpeculativeSampling):
    """Draws from the ids a sparse head scored and claims the dense distribution (q is not the one sampled)."""

    def draw(self, scores, position, stage):
        drawn = super().draw(scores, position, stage)
        here = (weight(*NEAR)[scores.ids[0, 0]] == scores.logits[0, 0]).nonzero()[0]
        return Drawn(drawn.token, Scores(None, weight(*NEAR).T[here]), drawn.sound)


class InPlace(SpeculativeSampling):
    """Overwrites the target's probabilities before they are used and promoted (vllm-ascend 2881)."""

    def accepts(self, p, q, tokens, numbers):
        found = super().accepts(p, q, tokens, numbers)
        p.clamp_(max=0.25)
        return found


def broken(kind=SpeculativeSampling, **methods):
    return type("Broken", (kind,), methods)


def at_another_temperature(self, scores, position, stage):
    drawn = SpeculativeSampling.draw(self, Scores(scores.ids, scores.logits * 2), position, stage)
    return Drawn(drawn.token, warp(scores, self.sampling), drawn.sound)


SharedNumber = broken(__init__=lambda self, to, size: SpeculativeSampling.__init__(self, to, size, OneNumber(to.seed)))
NoResidual = broken(residual=lambda self, p, q: p)  # draws the correction from p (openvino.genai 4490)
Credulous = broken(accepts=lambda self, p, q, tokens, numbers: torch.ones_like(tokens, dtype=torch.bool))
RawClaim = broken(draw=at_another_temperature)  # and claims the raw scores (DeepSpec 31)
UNIFORM = Scores(torch.arange(VOCAB)[None], torch.zeros(1, VOCAB))
Boasting = broken(LookupHead, __call__=lambda self, rows: Scores(*(part.expand(len(rows), -1) for part in UNIFORM)))
ONE = torch.ones(1, dtype=torch.int64)
Copying = broken(draw=lambda self, *given: SpeculativeSampling.draw(self, *given)._replace(token=ONE))  # whatever they say
BROKEN = {
    "shared random number": lambda: caught(two(SharedNumber), law(0)),
    "residual missing": lambda: caught(two(NoResidual), law(0)),
    "accepting always": lambda: caught(two(Credulous), law(0)),
    "typical acceptance": lambda: caught(two(TypicalAcceptance), law(0)),
    "dense q for a sparse draft": lambda: caught(two([DenseClaim, SpeculativeSampling], sparse), law(0)),
    "q at another temperature": lambda: caught(two([RawClaim, SpeculativeSampling]), law(0)),
    "target modified in place": lambda: caught(two([SpeculativeSampling, InPlace]), law(0)),
    "stopping after the draw": lambda: caught(doubting(Peeking), law(0)),
    "lossy middle": lambda: caught(three(middle=TypicalAcceptance), law(0), new=4),
    "lookup that claims another law": lambda: caught(looking_up(Boasting, Copying), law(0)),
    "another model": lambda: caught(two(), law(5)),
    "another exit": lambda: caught(spans(1, 2), own_law(2), new=4),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_control_a_broken_variant_is_caught(name):
    assert BROKEN[name]()


@pytest.mark.parametrize("over", ["toys", "spans"])
def test_the_control_a_cascade_without_promotion_is_caught(over, monkeypatch):
    monkeypatch.setattr(cascade, "promoted", without_promotion)
    assert caught(three(), law(0), new=4) if over == "toys" else caught(spans(1, 2), own_law(), new=4)


def test_the_control_a_shared_number_in_the_compiled_verdict_is_caught(monkeypatch):
    if not kernels.available():
        pytest.skip("no C compiler on this machine")

    def shared(self, waiting, numbers=SpeculativeSampling.numbers):
        found, m = numbers(self, waiting), len(waiting.tokens)
        return torch.cat([found[:m], found[:m], found[2 * m :]])

    monkeypatch.setattr(SpeculativeSampling, "numbers", shared)
    assert caught(two(), law(0))

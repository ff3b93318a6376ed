"""A divergence certificate tells a rounding tie from a defect."""

import pytest
import torch
from shelf import refused
from toys import PROMPT as START
from toys import duo, text

from flashspec import Sampling, kernels
from flashspec.measure.certificate import certify, first_difference, shape_noise, target_scorer
from flashspec.models.reader import SpanReader

PROMPT = (7, 8)


def scorer(gap, noise):
    """Logits whose ids 1 and 2 lead by everything and lie `gap` apart; blockings move them by up to `noise`."""

    def score(prefix, block):
        logits = torch.full((50,), -9.0)
        logits[1], logits[2] = 5.0, 5.0 - gap
        return logits + (noise if block % 2 else 0.0)

    return score


def test_a_gap_inside_the_noise_is_a_tie_and_beyond_it_a_defect():
    tie, defect = (certify((3, 1, 4), (3, 2, 4), PROMPT, scorer(gap, noise=0.01)) for gap in (0.03, 0.05))
    assert (tie.verdict, tie.position, tie.tokens, defect.verdict) == ("numeric tie", 1, (1, 2), "defect")
    assert (tie.gap, tie.noise) == pytest.approx((0.03, 0.01), abs=1e-5)
    for token, gap, noise in ((30, 0.0, 0.01), (2, 1e-6, 0.0)):  # no contender, though the leading two tie; no noise
        certificate = certify((3, 1), (3, token), PROMPT, scorer(gap, noise))
        assert certificate.verdict == certificate._replace(gap=float("nan"), noise=1.0).verdict == "defect"
    assert certify((1, 2), (1, 2), PROMPT, scorer(0.0, 0.0)) is first_difference((1, 2), (1, 2)) is None
    assert [first_difference(*pair) for pair in (((1, 2), (1, 3)), ((1, 2), (1,)), ((), (4,)))] == [1, 1, 0]
    refused("compare equal lengths", certify, (1, 2), (1,), PROMPT, scorer(0.0, 0.0))


def test_the_target_scorer_agrees_with_the_model_in_every_blocking():
    target = duo(0, torch.float32).target
    scorer, whole = target_scorer(target, Sampling()), target(torch.tensor([START]))[0, -1]
    rows = torch.stack([scorer(START, block) for block in (1, 2, 4, 8)])
    assert torch.allclose(rows, whole.expand_as(rows), atol=1e-4) and shape_noise(rows) < 1e-4
    best = int(whole.argmax())
    assert certify([best], [(best + 1) % len(whole)], START, scorer).verdict == "defect"

    written = text(duo(), "baseline", 0.7)
    scorer = target_scorer(duo().target, Sampling(0.7, seed=7))
    assert [int(scorer([*START, *written[:at]], 4).argmax()) for at in range(8)] == written[:8]


def in_bfloat16(method, model, temperature):
    return text(duo(model, torch.bfloat16), method, temperature, max_new_tokens=60)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)
    return {(model, t): in_bfloat16("baseline", model, t) for model in (0, 1) for t in (0.0, 0.7)}


def certificates(method, plain):
    found = []
    for (model, temperature), expected in plain.items():
        scorer = target_scorer(duo(model, torch.bfloat16).target, Sampling(temperature, seed=7))
        found.append(certify(expected, in_bfloat16(method, model, temperature), START, scorer))
    return [certificate for certificate in found if certificate is not None]


@pytest.mark.parametrize("method", ["dense", "hispec"])
def test_bfloat16_texts_of_a_sound_method_part_at_ties_only(plain, method):
    assert {certificate.verdict for certificate in certificates(method, plain)} <= {"numeric tie"}


def test_a_defect_planted_in_bfloat16_is_called_one(plain, monkeypatch):
    monkeypatch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n + (n > 0))))
    found = certificates("dense", plain)
    assert found and "defect" in {certificate.verdict for certificate in found}

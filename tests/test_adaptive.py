"""Stopping before a draw keeps text and law; stopping after it, on what was drawn, does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prefixes import PrefixHead, caught, dense, law, p_of, stack, weight
from toys import TEMPERATURES, duo, run, text

from flashspec.decoding import stages as staging
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.rules import TypicalAcceptance, probability_of
from flashspec.decoding.stages import doubt_named
from flashspec.heads import DenseHead
from flashspec.sampling import Scores

NEAR, FAR = (1, 0), (2, 1, 0)
ADAPTIVE = {
    "confidence": Method(exits=(2, 4), k=5, interval=6, draft_doubt=0.5, verify_doubt=0.5),
    "entropy": Method(exits=(2, 4), k=5, interval=6, doubt="entropy", draft_doubt=1.0, verify_doubt=1.0),
    "draft model": Method(draft="model", k=6, draft_doubt=0.6),
    "flash": Method(draft="model", head="flash", k=6, draft_doubt=0.7),
}


def test_doubts_are_what_they_say():
    scores = Scores(None, torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]))
    assert doubt_named("confidence", 0.5)(scores).tolist() == doubt_named("entropy", 1.0)(scores).tolist() == [True, False]
    assert doubt_named("confidence", 0.2)(scores).tolist() == doubt_named("entropy", 1.4)(scores).tolist() == [False, False]
    with pytest.raises(ValueError, match="probability in"):
        Method(exits=(2,), draft_doubt=1.5)
    with pytest.raises(ValueError, match="at least 0 nats"):
        Method(exits=(2,), doubt="entropy", draft_doubt=-1.0)
    with pytest.raises(ValueError, match="doubt must be one of confidence, entropy"):
        Method(exits=(2,), doubt="mood")


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_text_is_the_baselines_and_bursts_differ(name, temperature):
    out = run(duo(), ADAPTIVE[name], temperature)
    assert out.tokens == text(duo(), "baseline", temperature)
    fixed = run(duo(), replace(ADAPTIVE[name], draft_doubt=None, verify_doubt=None), temperature)
    assert {e.adds for e in out.events if e.stage == 0} != {e.adds for e in fixed.events if e.stage == 0}


def test_a_doubting_verifier_asks_before_its_interval():
    waiting = [e.waiting for e in run(duo(), ADAPTIVE["confidence"], 0.7).events if e.stage == 2 and e.adds]
    calm = [e.waiting for e in run(duo(), replace(ADAPTIVE["confidence"], verify_doubt=None), 0.7).events if e.stage == 2]
    assert min(waiting) < 6 <= max(calm)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_burst_cut_after_the_fact_is_the_burst_that_stopped(name, monkeypatch):
    """Off the CPU a burst is computed whole and cut in one transfer."""
    stopped = run(duo(), ADAPTIVE[name], 0.7)
    monkeypatch.setattr(staging, "stops", lambda doubt, doubts: doubts.append(doubt))
    cut = run(duo(), ADAPTIVE[name], 0.7)
    assert cut.tokens == stopped.tokens
    assert [e[:3] + (e.adds,) for e in cut.events if e.adds] == [e[:3] + (e.adds,) for e in stopped.events if e.adds]


class Noting(PrefixHead):
    """Remembers the position it was asked about."""

    def __call__(self, rows, positions, dice):
        self.position = int(positions[0])
        return super().__call__(rows, positions, dice)


class Peeking:
    """In doubt where the very token that will be drawn is improbable: the draw decides whether it counts."""

    def __init__(self, rule, head, least=0.35):
        self.rule, self.head, self.least = rule, head, least

    def __call__(self, scores):
        drawn = self.rule.draw(scores, self.head.position, 0)
        return probability_of(drawn.scores, drawn.token) < self.least


def two(doubt, every=2):
    """A doubting draft under a target; `doubt` is made from the draft's rule and head."""
    head = Noting(DenseHead(None, weight(*NEAR)))
    make = stack([head, dense(0)], every=(1, every))

    def stages(sampling):
        draft, target = make(sampling)
        return [draft._replace(doubt=doubt(draft.rule, head)), target]

    return stages


@pytest.mark.parametrize("doubt", [doubt_named("confidence", 0.5), doubt_named("entropy", 1.1)], ids=str)
def test_stopping_before_the_draw_keeps_the_law(doubt):
    assert p_of(two(lambda rule, head: doubt), 800, law(0)) > 1e-4


def test_the_control_stopping_after_the_draw_is_caught():
    assert caught(two(Peeking), law(0))


def three(doubt=None, middle=None):
    """Three stages whose middle one may doubt or be lossy."""
    make = stack([dense(2, *NEAR), dense(*NEAR), dense(0)])

    def stages(sampling):
        bottom, mid, top = make(sampling)
        return [bottom._replace(doubt=doubt), mid._replace(doubt=doubt, rule=(middle or type(mid.rule))(sampling, 4)), top]

    return stages


def test_a_doubting_middle_keeps_the_law():
    assert p_of(three(doubt_named("confidence", 0.5)), 800, law(0), new=4) > 1e-4


def test_a_lossy_middle_is_caught_and_says_so():
    assert caught(three(middle=TypicalAcceptance), law(0), new=4)
    assert METHODS["hispec_typical"].middle == "typical"


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_lossy_middle_keeps_the_text_where_the_top_compares_tokens(temperature):
    assert text(duo(), "hispec_typical", temperature) == text(duo(), "baseline", temperature)

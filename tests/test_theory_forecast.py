"""Intervals cover, and replayed texts equal coin flips."""

import random

import pytest

from flashspec import theory
from flashspec.theory import Costs, Level

COSTS = Costs(draft=0.2, verify=1.2, overhead=0.1)


def flipped(stands, block, dice):
    """Rounds, drafted and accepted tokens of one decode of a known text: the loop's own steps, one coin a token."""
    n = rounds = drafted = accepted = 0
    while n < len(stands):
        want = min(block, len(stands) - n - 1)
        kept = next((i for i in range(want) if dice.random() >= stands[n + i]), want)
        n, rounds, drafted, accepted = n + kept + 1, rounds + 1, drafted + want, accepted + kept
    return rounds, drafted, accepted


@pytest.mark.parametrize("block", [1, 3, 7])
def test_a_replayed_text_is_the_mean_of_its_decodes(block):
    dice = random.Random(1)
    stands = [dice.random() for _ in range(30)]
    runs = [flipped(stands, block, dice) for _ in range(20_000)]
    found = theory.replayed(stands, block)
    assert found[:3] == pytest.approx([sum(column) / len(runs) for column in zip(*runs, strict=True)], rel=0.01)
    assert found.rounds + found.accepted == pytest.approx(found.emitted)


@pytest.mark.parametrize("block", [1, 2, 5, 12])
def test_a_text_of_hits_and_misses_is_replayed_exactly(block):
    dice = random.Random(2)
    stands = [float(dice.random() < 0.7) for _ in range(101)]
    assert theory.replayed(stands, block)[:3] == flipped(stands, block, dice)
    assert theory.replayed(stands, block) != theory.replayed(stands[::-1], block)  # the control: the order matters


def test_a_curve_read_from_texts_gives_their_tokens_a_check():
    dice, block = random.Random(3), 4
    texts = [[dice.random() for _ in range(400)] for _ in range(6)]
    curve = theory.curve_by_position(texts, block)
    assert theory.tokens_from_curve(curve) == pytest.approx(theory.replayed_all(texts, block).tar, rel=0.02)
    flat = [[0.6] * 50]
    assert theory.curve_by_position(flat, block) == pytest.approx((0.6,) * block)
    assert len(theory.curve_by_position([[0.0] * 9], block)) == 1  # nothing beyond the first position was ever reached


def test_a_text_without_tokens_has_no_tokens_a_check():
    with pytest.raises(ValueError, match="at least one token"):
        _ = theory.replayed_all([], 4).tar


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    dice, hits = random.Random(4), 0
    for seed in range(120):
        sample = [dice.gauss(5.0, 1.0) for _ in range(30)]
        found = theory.bootstrap([sample], lambda s: sum(s) / len(s), draws=200, seed=seed)
        hits += found.low <= 5.0 <= found.high
    assert 0.86 <= hits / 120 <= 1.0


def test_more_evidence_narrows_an_interval_and_a_seed_fixes_it():
    def width(size):
        found = theory.bootstrap([list(range(size)), [1.0] * 5], lambda a, b: sum(a) / len(a) / max(a or [1]) / max(b), seed=1)
        return found.high - found.low

    def mean(sample):
        return sum(sample) / len(sample)

    assert width(400) < width(10)
    assert theory.bootstrap([range(9)], mean, seed=1) == theory.bootstrap([range(9)], mean, seed=1)
    assert theory.bootstrap([range(9)], mean, seed=1) != theory.bootstrap([range(9)], mean, seed=2)
    with pytest.raises(ValueError, match="at least 3 items"):
        theory.bootstrap([[1.0, 2.0]], mean)


@pytest.mark.parametrize("block", [1, 4, 9])
def test_what_breaks_even_makes_the_speedup_one(block):
    step, tar = 1.0, 0.8 * block + 1.0
    found = theory.break_even(tar, COSTS, block, step)
    assert theory.speedup(found.tar, COSTS, block, step) == pytest.approx(1.0)
    if found.acceptance is not None:
        assert theory.speedup(theory.tokens_per_check(found.acceptance, block), COSTS, block, step) == pytest.approx(1.0)
    if found.draft is not None:
        assert theory.speedup(tar, Costs(found.draft, 1.2, overhead=0.1), block, step) == pytest.approx(1.0)


def test_a_check_too_dear_for_any_draft_says_so():
    assert theory.break_even(2.0, Costs(0.1, 9.0), 2, 1.0).acceptance is None
    assert theory.break_even(2.0, Costs(0.1, 9.0), 2, 1.0).draft is None


def test_one_level_is_the_closed_form():
    found = theory.nested(0.2, [Level(0.7, 5, lambda n: 1.0 + 0.1 * n)])
    assert found.tokens == pytest.approx(theory.tokens_per_check(0.7, 5))
    assert found.time == pytest.approx(theory.round_time(Costs(0.2, 1.5), 5))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: theory.replayed([0.5, 1.5], 2), r"probability of token 1 must lie in \[0, 1\]"),
    (lambda: theory.replayed([0.5], 0), "block must be"),
    (lambda: theory.nested(-1.0, [Level(0.5, 2, 1.0)]), "draft must be finite"),
    (lambda: theory.nested(1.0, [Level(1.5, 2, 1.0)]), r"alpha must lie in \[0, 1\]"),
    (lambda: theory.nested(1.0, []), "at least one verifier"),
])  # fmt: skip
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

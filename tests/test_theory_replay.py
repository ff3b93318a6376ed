"""Replayed texts equal coin flips, intervals cover, what breaks even breaks even, and split models equal hand-made formulas."""

import random
from dataclasses import replace

import pytest

from flashspec import theory
from flashspec.theory import Costs, Devices, Weights, split_costs, split_pass

COSTS = Costs(draft=0.2, verify=1.2, overhead=0.1)
TARGET, DRAFT = Weights(16e9, 64), Weights(1e9, 28)
FREE = Devices(4, 4e12, 0.0)


def flipped(shares, block, dice):
    """Rounds, drafted and accepted tokens of one decode of a known text: the loop's own steps, one coin a token."""
    n = rounds = drafted = accepted = 0
    while n < len(shares):
        want = min(block, len(shares) - n - 1)
        kept = next((i for i in range(want) if dice.random() >= shares[n + i]), want)
        n, rounds, drafted, accepted = n + kept + 1, rounds + 1, drafted + want, accepted + kept
    return rounds, drafted, accepted


@pytest.mark.parametrize("block", [1, 3, 7])
def test_a_replayed_text_is_the_mean_of_its_decodes(block):
    dice = random.Random(1)
    shares = [dice.random() for _ in range(30)]
    runs = [flipped(shares, block, dice) for _ in range(20_000)]
    found = theory.replayed(shares, block)
    assert found[:3] == pytest.approx([sum(column) / len(runs) for column in zip(*runs, strict=True)], rel=0.01)
    assert found.rounds + found.accepted == pytest.approx(found.emitted)


@pytest.mark.parametrize("block", [1, 5, 12])
def test_a_text_of_hits_and_misses_is_replayed_exactly(block):
    dice = random.Random(2)
    shares = [float(dice.random() < 0.7) for _ in range(101)]
    assert theory.replayed(shares, block)[:3] == flipped(shares, block, dice)
    assert theory.replayed(shares, block) != theory.replayed(shares[::-1], block)  # the control: the order matters


def test_a_curve_read_from_texts_gives_their_tokens_a_check():
    dice, block = random.Random(3), 4
    texts = [[dice.random() for _ in range(400)] for _ in range(6)]
    curve = theory.curve_by_position(texts, block)
    assert theory.tokens_from_curve(curve) == pytest.approx(theory.replayed_all(texts, block).tar, rel=0.02)
    assert theory.curve_by_position([[0.6] * 50], block) == pytest.approx((0.6,) * block)
    assert len(theory.curve_by_position([[0.0] * 9], block)) == 1  # nothing beyond the first position was ever reached


def mean(sample):
    return sum(sample) / len(sample)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    dice, hits = random.Random(4), 0
    for seed in range(120):
        found = theory.bootstrap([[dice.gauss(5.0, 1.0) for _ in range(30)]], mean, draws=200, seed=seed)
        hits += found.low <= 5.0 <= found.high
    assert 0.86 <= hits / 120 <= 1.0


def test_more_evidence_narrows_an_interval_and_a_seed_fixes_it():
    found = {size: theory.bootstrap([[i / size for i in range(size)]], mean, seed=1) for size in (10, 400)}
    assert found[400].high - found[400].low < found[10].high - found[10].low
    assert theory.bootstrap([range(9)], mean, seed=1) == theory.bootstrap([range(9)], mean, seed=1)
    assert theory.bootstrap([range(9)], mean, seed=1) != theory.bootstrap([range(9)], mean, seed=2)


@pytest.mark.parametrize("block", [1, 4, 9])
def test_what_breaks_even_makes_the_speedup_one(block):
    step, tar = 1.0, 0.8 * block + 1.0
    found = theory.break_even(tar, COSTS, block, step)
    assert theory.speedup(found.tar, COSTS, block, step) == pytest.approx(1.0)
    assert theory.speedup(theory.tokens_per_check(found.acceptance, block), COSTS, block, step) == pytest.approx(1.0)
    if found.draft is not None:
        assert theory.speedup(tar, Costs(found.draft, 1.2, overhead=0.1), block, step) == pytest.approx(1.0)
    assert theory.break_even(2.0, Costs(0.1, 9.0), 2, 1.0)[::2] == (None, None)  # no alpha, and no draft, makes up for the check


def test_a_pass_is_its_share_of_the_bytes_and_two_waits_a_layer():
    assert split_pass(TARGET, replace(FREE, count=1, all_reduce=1.0)) == pytest.approx(4e-3)  # one device waits for nobody
    assert split_pass(TARGET, FREE) == pytest.approx(1e-3)
    assert split_pass(TARGET, replace(FREE, all_reduce=10e-6)) == pytest.approx(1e-3 + 128 * 10e-6)


def test_a_draft_that_is_not_split_brings_less_the_more_devices_share_the_target_and_waits_bring_it_back():
    gains = {}
    for count, wait in ((1, 0.0), (2, 0.0), (4, 0.0), (8, 0.0), (8, 20e-6)):
        costs, step = split_costs(TARGET, DRAFT, Devices(count, 4e12, wait))
        assert (costs.draft, costs.check(5)) == (pytest.approx(0.25e-3), step)
        gains[count, wait] = theory.speedup(theory.tokens_per_check(0.7, 5), costs, 5, step)
    free = [gain for (_, wait), gain in gains.items() if not wait]
    assert free == sorted(free, reverse=True) and free[0] > 2 * free[-1] and gains[8, 20e-6] > gains[8, 0.0]

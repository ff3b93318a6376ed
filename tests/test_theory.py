"""Closed forms equal a coin-flip simulation and the arithmetic of the papers' own tables; nonsense is refused in words."""

import math
import random

import pytest

from flashspec import theory
from flashspec.theory import Costs, Devices


def settled(curve, dice):
    """Tokens one check settles, one coin a position: the naive twin."""
    standing = 0
    for alpha in curve:
        if dice.random() >= alpha:
            break
        standing += 1
    return standing + 1


def simulated(curve, rounds=200_000, seed=1):
    dice = random.Random(seed)
    return sum(settled(curve, dice) for _ in range(rounds)) / rounds


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 0.97, 1.0])
@pytest.mark.parametrize("block", [1, 4, 8])
def test_tokens_per_check_equals_coin_flips(alpha, block):
    expected = simulated([alpha] * block)
    assert theory.tokens_per_check(alpha, block) == pytest.approx(expected, rel=0.01)
    assert theory.tokens_from_curve([alpha] * block) == pytest.approx(theory.tokens_per_check(alpha, block))
    if 0.5 < alpha < 1.0:  # the control: the bonus token forgotten
        assert (1 - alpha**block) / (1 - alpha) != pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("curve", [(0.9, 0.8, 0.7), (1.0, 0.0, 0.9), (0.6, 0.95, 0.95, 0.2)])
def test_tokens_from_a_curve_equal_coin_flips(curve):
    assert theory.tokens_from_curve(curve) == pytest.approx(simulated(curve), rel=0.01)


def test_throughput_equals_a_simulated_clock():
    costs, dice, clock, tokens = Costs(0.7, 3.0, finalize=0.4, overhead=0.1), random.Random(2), 0.0, 0
    for _ in range(100_000):
        tokens += settled([0.8] * 5, dice)
        clock += 5 * 0.7 + 3.0 + 0.4 + 0.1
    assert theory.throughput(theory.tokens_per_check(0.8, 5), costs, 5) == pytest.approx(tokens / clock, rel=0.01)


@pytest.mark.parametrize(("tar", "draft", "published"), [(3.81, 13.13, 23.10), (3.70, 6.69, 32.59)])
def test_the_model_reproduces_the_published_rows_and_refuses_another_gamma(tar, draft, published):
    """Decoding Speculative Decoding: gamma = 8 and a 60 ms check explain both 1.3B drafts."""
    for block, fits in ((8, True), (7, False)):
        assert (1000 * theory.throughput(tar, Costs(draft, 60.0), block) == pytest.approx(published, rel=0.005)) is fits


def test_the_thesis_step_its_head_share_and_its_ceiling():
    step = theory.implied_step(2.493 - 0.577, 1.108)
    share = 2.493 / step
    assert step == pytest.approx(19.66, abs=0.005)
    assert share == pytest.approx(0.127, abs=0.0005)
    assert theory.amdahl(share, math.inf) == pytest.approx(1.145, abs=0.0005)
    assert theory.amdahl(share, 2.493 / 0.577) == pytest.approx(1.108, abs=0.0005)


@pytest.mark.parametrize("block", [1, 3, 7])
def test_break_even_acceptance_is_where_speculation_equals_decoding(block):
    costs = Costs(0.1, 1.0, overhead=0.02)
    alpha = theory.break_even(1.0, costs, block, 1.0).acceptance
    assert theory.speedup(theory.tokens_per_check(alpha, block), costs, block, 1.0) == pytest.approx(1.0)


def test_break_even_and_the_speedup_are_the_theorems():
    assert theory.break_even(1.0, Costs(0.23, 1.0), 1, 1.0).acceptance == pytest.approx(0.23)
    assert theory.break_even(1.0, Costs(3.0, 1.0), 1, 1.0).acceptance is None  # nothing pays
    assert theory.break_even(1.0, Costs(0.1, 0.5), 2, 1.0).acceptance == 0.0  # everything does
    found = theory.speedup(theory.tokens_per_check(0.8, 5), Costs(0.1, 1.0), 5, 1.0)
    assert found == pytest.approx((1 - 0.8**6) / ((1 - 0.8) * (5 * 0.1 + 1)))


@pytest.mark.parametrize(("kappa", "nu"), [(0.2, 0.25), (1.5, 0.1), (3.0, 0.9)])
def test_the_cheap_head_gate_is_where_two_throughputs_meet(kappa, nu):
    rho = theory.cheap_head_gate(kappa, nu)
    rest, full = 1.0, kappa
    assert rho * 3.0 / (rest + nu * full) == pytest.approx(3.0 / (rest + full))
    assert theory.cheap_head_gain(rho, kappa, nu) == pytest.approx(1.0)
    assert theory.cheap_head_gain(1.0, kappa, nu) == pytest.approx(theory.amdahl(kappa / (1 + kappa), 1 / nu))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_acceptance_for_inverts_tokens_per_check(alpha):
    assert theory.acceptance_for(theory.tokens_per_check(alpha, 4), 4) == pytest.approx(alpha, abs=1e-6)


def test_interpolation_meets_the_measured_blocks():
    verify = theory.interpolated({1: 10.0, 5: 14.0})
    assert [verify(1), verify(3), verify(5)] == [10.0, 12.0, 14.0]
    with pytest.raises(ValueError, match="measure that block"):
        verify(8)


@pytest.mark.parametrize(("call", "word"), [
    (lambda: theory.tokens_per_check(1.2, 4), "alpha"),
    (lambda: theory.tokens_per_check(math.nan, 4), "alpha"),
    (lambda: theory.tokens_per_check(0.5, 1.5), "block"),
    (lambda: theory.tokens_from_curve([0.5, 2.0]), "position 1"),
    (lambda: Costs(-1.0, 1.0), "draft"),
    (lambda: Costs(1.0, math.inf), "verify"),
    (lambda: Costs(lambda block: -1.0, 2.0).burst(1), "draft"),
    (lambda: theory.round_time(Costs(1.0, lambda block: -1.0), 2), "verify"),
    (lambda: theory.throughput(9.0, Costs(1.0, 1.0), 4), "TAR"),
    (lambda: theory.throughput(2.0, Costs(0.0, 0.0), 4), "round time"),
    (lambda: theory.speedup(2.0, Costs(1.0, 1.0), 4, 0.0), "baseline"),
    (lambda: theory.amdahl(1.5, 2.0), "share"),
    (lambda: theory.amdahl(0.5, 0.0), "gain"),
    (lambda: theory.implied_step(1.0, 0.9), "faster"),
    (lambda: theory.cheap_head_gate(-1.0, 0.5), "kappa"),
    (lambda: theory.bootstrap([[1.0, 2.0]], sum), "at least 3 items"),
    (lambda: theory.replayed([0.5, 1.5], 2), r"probability of token 1 must lie in \[0, 1\]"),
    (lambda: theory.replayed([0.5], 0), "block must be"),
    (lambda: theory.replayed_all([], 4).tar, "at least one token"),
    (lambda: Devices(0, 1.0, 0.0), "block must"),
    (lambda: Devices(1, 0.0, 0.0), "bandwidth must"),
    (lambda: Devices(1, 1.0, math.nan), "all_reduce must"),
])  # fmt: skip
def test_nonsense_is_refused_in_words(call, word):
    with pytest.raises(ValueError, match=word) as refusal:
        call()
    assert "\n" not in str(refusal.value)

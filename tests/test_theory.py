"""Closed forms equal coin flips and the arithmetic of the papers' own tables; nonsense is refused in words."""

import math
import random
from statistics import mean

import pytest
import torch
from shelf import refused, refusing

from flashspec import Limits, Stage, decode, theory
from flashspec.decoding.lookup import LookupHead, LookupReader
from flashspec.decoding.rules import GumbelCoupling, Verdict
from flashspec.sampling import GREEDY
from flashspec.theory import Costs, Level, nested, tokens_per_check


def settled(curve, dice):
    standing = 0
    for alpha in curve:
        if dice.random() >= alpha:
            break
        standing += 1
    return standing + 1


FLAT = [(alpha,) * block for alpha in (0.0, 0.3, 0.75, 0.97, 1.0) for block in (1, 4, 8)]


@pytest.mark.parametrize("curve", [*FLAT, (0.9, 0.8, 0.7), (1.0, 0.0, 0.9), (0.6, 0.95, 0.95, 0.2)])
def test_tokens_of_a_check_and_of_a_curve_equal_coin_flips(curve):
    dice, rounds = random.Random(1), 50_000
    expected, (alpha, *_) = sum(settled(curve, dice) for _ in range(rounds)) / rounds, curve
    assert theory.tokens_from_curve(curve) == pytest.approx(expected, rel=0.02)
    if curve in FLAT:
        assert theory.tokens_per_check(alpha, len(curve)) == pytest.approx(theory.tokens_from_curve(curve))
        if 0.5 < alpha < 1.0:  # the control: the bonus token forgotten
            assert (1 - alpha ** len(curve)) / (1 - alpha) != pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("kappa", "nu"), [(0.2, 0.25), (1.5, 0.1), (3.0, 0.9)])
def test_the_cheap_head_gate_is_where_two_throughputs_meet(kappa, nu):
    rho = theory.cheap_head_gate(kappa, nu)
    rest, full = 1.0, kappa
    assert rho * 3.0 / (rest + nu * full) == pytest.approx(3.0 / (rest + full))
    assert 1 / rho == pytest.approx(theory.amdahl(kappa / (1 + kappa), 1 / nu))


def test_acceptance_for_inverts_tokens_per_check():
    for alpha in (0.0, 0.3, 0.9, 1.0):
        assert theory.acceptance_for(theory.tokens_per_check(alpha, 4), 4) == pytest.approx(alpha, abs=1e-6)
    verify = theory.interpolated({1: 10.0, 5: 14.0})
    assert [verify(1), verify(3), verify(5)] == [10.0, 12.0, 14.0]
    refused("measure that block", verify, 8)


test_nonsense_is_refused_in_words = refusing([
    (lambda: theory.tokens_per_check(1.2, 4), "alpha"),
    (lambda: theory.tokens_per_check(0.5, 1.5), "block"),
    (lambda: theory.tokens_from_curve([0.5, 2.0]), "position 1"),
    (lambda: theory.round_time(Costs(-1.0, 1.0), 2), "draft"),
    (lambda: theory.round_time(Costs(1.0, math.inf), 2), "verify"),
    (lambda: theory.round_time(Costs(1.0, lambda block: -1.0), 2), "verify"),
    (lambda: theory.throughput(9.0, Costs(1.0, 1.0), 4), "TAR"),
    (lambda: theory.throughput(2.0, Costs(0.0, 0.0), 4), "round time"),
    (lambda: theory.speedup(2.0, Costs(1.0, 1.0), 4, 0.0), "baseline"),
    (lambda: theory.amdahl(1.5, 2.0), "share"),
    (lambda: theory.implied_step(1.0, 0.9), "faster"),
    (lambda: theory.cheap_head_gate(-1.0, 0.5), "kappa"),
    (lambda: theory.bootstrap([[1.0, 2.0]], sum), "at least 3 items"),
    (lambda: theory.replayed([[0.5, 1.5]], 2), r"probability of token 1 must lie in \[0, 1\]"),
    (lambda: theory.replayed([], 4).tar, "at least one token"),
])  # fmt: skip


CASES = {
    "one level": [Level(0.7, 4, 3.0)],
    "HiSpec": [Level(0.6, 2, lambda n: 1 + 0.1 * n), Level(0.8, 4, 7.0)],
    "short interval": [Level(0.9, 3, 1.0), Level(0.7, 1, 7.0)],
    "three levels": [Level(0.5, 1, 1.0), Level(0.7, 3, 3.0), Level(0.9, 9, lambda n: 7 + n)],
    "never": [Level(0.0, 2, 1.0), Level(0.0, 5, 2.0)],
    "always": [Level(1.0, 2, 1.0), Level(1.0, 5, 2.0)],
}
CHECKS = 20_000


def tossed(draft, levels):
    dice, clock = random.Random(0), 0.0

    def act(number):
        nonlocal clock
        level, waiting, kept = levels[number], 0, 0
        while waiting < level.every:
            clock += 0 if number else draft * level.every
            waiting += act(number - 1) if number else level.every
        while kept < waiting and dice.random() < level.alpha:
            kept += 1
        clock += level.time(waiting)
        return kept + 1

    tokens = sum(act(len(levels) - 1) for _ in range(CHECKS))
    return tokens / CHECKS, clock / CHECKS


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_equals_coin_flips(name):
    assert nested(0.3, CASES[name]) == pytest.approx(tossed(0.3, CASES[name]), rel=0.02)


def test_the_control_a_forgotten_token_and_a_level_that_never_waits_for_more_are_seen():
    levels = CASES["HiSpec"]
    for wrong in (nested(0.3, levels)[0] - 1, tokens_per_check(levels[-1].alpha, levels[-1].every)):
        assert wrong != pytest.approx(tossed(0.3, levels)[0], rel=0.02)


class Coins(GumbelCoupling):
    def __init__(self, alpha, dice):
        super().__init__(GREEDY, 4)
        self.alpha, self.coins = alpha, dice

    def verify(self, scores, waiting):
        count = len(waiting.tokens)
        kept = next((i for i in range(count) if self.coins.random() >= self.alpha), count)
        return Verdict(torch.tensor([kept]), torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), scores)


class Ones(LookupReader):
    def read(self, tokens):
        new, self.seen = max(0, len(tokens) - self.seen), max(self.seen, len(tokens))
        self.rows.fill_(1)
        return (new,)


@pytest.mark.parametrize("name", ["HiSpec", "three levels"])
def test_the_loop_with_coins_is_the_closed_form(name):
    levels, dice = CASES[name], random.Random(3)
    rules = [Coins(level.alpha, dice) for level in levels]
    every = [1, *(level.every for level in levels)]
    stages = [Stage(Ones(3000), LookupHead(4), rule, n) for rule, n in zip([rules[0], *rules], every, strict=True)]
    events = [event for step in decode(stages, [1], Limits(2500)) for event in step.events]
    drafted = sum(e.adds for e in events if e.stage == 0)
    top = [e for e in events if e.stage == len(levels)]
    expected = nested(1.0, [level._replace(check=0.0) for level in levels])
    assert (sum(e.kept + 1 for e in top) / len(top), drafted / len(top)) == pytest.approx(expected, rel=0.07)


COSTS = Costs(draft=0.2, verify=1.2, overhead=0.1)


def flipped(shares, block, dice):
    n = rounds = drafted = accepted = 0
    while n < len(shares):
        want = min(block, len(shares) - n - 1)
        kept = next((i for i in range(want) if dice.random() >= shares[n + i]), want)
        n, rounds, drafted, accepted = n + kept + 1, rounds + 1, drafted + want, accepted + kept
    return rounds, drafted, accepted


@pytest.mark.parametrize("block", [1, 3, 7])
def test_a_replayed_text_is_the_mean_of_its_decodes_and_one_of_hits_and_misses_is_replayed_exactly(block):
    dice = random.Random(1)
    shares = [dice.random() for _ in range(30)]
    runs = [flipped(shares, block, dice) for _ in range(20_000)]
    found = theory.replayed([shares], block)
    assert found[:3] == pytest.approx([sum(column) / len(runs) for column in zip(*runs, strict=True)], rel=0.01)
    assert found.rounds + found.accepted == pytest.approx(found.emitted)
    shares = [float(dice.random() < 0.7) for _ in range(101)]
    assert theory.replayed([shares], block)[:3] == flipped(shares, block, dice)
    assert theory.replayed([shares], block) != theory.replayed([shares[::-1]], block)  # the control: the order matters


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    dice, hits = random.Random(4), 0
    for seed in range(120):
        found = theory.bootstrap([[dice.gauss(5.0, 1.0) for _ in range(30)]], mean, draws=200, seed=seed)
        hits += found.low <= 5.0 <= found.high
    assert 0.86 <= hits / 120 <= 1.0
    one, same, other = (theory.bootstrap([range(9)], mean, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("block", [1, 4, 9])
def test_what_breaks_even_makes_the_speedup_one(block):
    step, tar = 1.0, 0.8 * block + 1.0
    found = theory.break_even(tar, COSTS, block, step)
    assert theory.speedup(found.tar, COSTS, block, step) == pytest.approx(1.0)
    assert theory.speedup(theory.tokens_per_check(found.acceptance, block), COSTS, block, step) == pytest.approx(1.0)
    if found.draft is not None:
        assert theory.speedup(tar, Costs(found.draft, 1.2, overhead=0.1), block, step) == pytest.approx(1.0)
    assert theory.break_even(2.0, Costs(0.1, 9.0), 2, 1.0)[::2] == (None, None)  # no alpha, and no draft, makes up for the check
    assert theory.break_even(1.0, Costs(0.1, 0.5), 2, 1.0).acceptance == 0.0  # any does
    found = theory.speedup(theory.tokens_per_check(0.8, 5), Costs(0.1, 1.0), 5, 1.0)
    assert found == pytest.approx((1 - 0.8**6) / ((1 - 0.8) * (5 * 0.1 + 1)))

"""Closed forms of nested stages equal coin flips, and the loop itself when its verifiers flip coins."""

import random

import pytest
import torch

from flashspec import Limits, Stage, decode
from flashspec.decoding.lookup import LookupHead, LookupReader
from flashspec.decoding.rules import GumbelCoupling, Verdict
from flashspec.sampling import GREEDY
from flashspec.theory import Costs, Level, nested, round_time, rows_read, tokens_per_check

CASES = {
    "one level": [Level(0.7, 4, 3.0)],
    "HiSpec": [Level(0.6, 2, lambda n: 1 + 0.1 * n), Level(0.8, 4, 7.0)],
    "short interval": [Level(0.9, 3, 1.0), Level(0.7, 1, 7.0)],
    "three levels": [Level(0.5, 1, 1.0), Level(0.7, 3, 3.0), Level(0.9, 9, lambda n: 7 + n)],
    "never": [Level(0.0, 2, 1.0), Level(0.0, 5, 2.0)],
    "always": [Level(1.0, 2, 1.0), Level(1.0, 5, 2.0)],
}
CHECKS = 20_000


def flipped(draft, levels):
    """Mean tokens and time of an action of the last level by coins: the naive twin."""
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
    assert nested(0.3, CASES[name]) == pytest.approx(flipped(0.3, CASES[name]), rel=0.02)


def test_the_control_a_forgotten_token_and_a_level_that_never_waits_for_more_are_seen():
    levels = CASES["HiSpec"]
    for wrong in (nested(0.3, levels)[0] - 1, tokens_per_check(levels[-1].alpha, levels[-1].every)):
        assert wrong != pytest.approx(flipped(0.3, levels)[0], rel=0.02)


def test_one_level_is_the_closed_form():
    found = nested(0.2, [Level(0.7, 5, lambda n: 1.0 + 0.1 * n)])
    assert found == pytest.approx((tokens_per_check(0.7, 5), round_time(Costs(0.2, 1.5), 5)))


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


def test_rows_are_the_final_ones_and_what_was_dropped_above():
    assert rows_read(100, [7, 5]) == [112, 112, 105]

"""Closed forms of nested stages equal coin flips, and the loop itself when its verifiers flip coins."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashspec.decoding.cascade import decode
from flashspec.decoding.lookup import LookupHead, LookupReader
from flashspec.decoding.rules import GumbelCoupling, Verdict
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits
from flashspec.sampling import GREEDY
from flashspec.theory import Level, flip, layer_tokens_per_token, nested, rows_read, tokens_per_check

CASES = {
    "one level": [Level(0.7, 4, 3.0)],
    "HiSpec": [Level(0.6, 2, lambda n: 1 + 0.1 * n), Level(0.8, 4, 7.0)],
    "short interval": [Level(0.9, 3, 1.0), Level(0.7, 1, 7.0)],
    "three levels": [Level(0.5, 1, 1.0), Level(0.7, 3, 3.0), Level(0.9, 9, lambda n: 7 + n)],
    "never": [Level(0.0, 2, 1.0), Level(0.0, 5, 2.0)],
    "always": [Level(1.0, 2, 1.0), Level(1.0, 5, 2.0)],
}
CHECKS = 20_000


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_equals_coin_flips(name):
    tally, found = flip(0.3, CASES[name], CHECKS), nested(0.3, CASES[name])
    assert found.tokens == pytest.approx(tally.tokens / CHECKS, rel=0.02)
    assert found.throughput == pytest.approx(tally.tokens / tally.clock, rel=0.02)


@pytest.mark.parametrize("name", CASES)
def test_layer_tokens_equal_those_of_coin_flips(name):
    levels = CASES[name]
    tally, stops = flip(0.3, levels, CHECKS), list(range(2, 2 * len(levels) + 3, 2))
    rows = rows_read(tally.tokens, tally.rejected)
    assert layer_tokens_per_token(levels, stops) == pytest.approx(2 * sum(rows) / tally.tokens, rel=0.02)


def test_the_control_a_level_that_adds_no_token_is_seen():
    levels = CASES["HiSpec"]
    assert nested(0.3, levels).tokens - 1 != pytest.approx(flip(0.3, levels, CHECKS).tokens / CHECKS, rel=0.02)


def test_the_control_a_level_that_never_waits_for_more_than_it_needs_is_seen():
    levels = CASES["HiSpec"]
    tally = flip(0.3, levels, CHECKS)
    assert tokens_per_check(levels[-1].alpha, levels[-1].every) != pytest.approx(tally.tokens / CHECKS, rel=0.02)


some_levels = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 6)), min_size=1, max_size=3)


@settings(max_examples=60)
@given(some_levels)
def test_reuse_never_computes_more(pairs):
    levels = [Level(alpha, every, 1.0) for alpha, every in pairs]
    stops = list(range(2, 2 * len(levels) + 3, 2))
    shared, alone = (layer_tokens_per_token(levels, stops, reuse) for reuse in (True, False))
    assert stops[-1] - 1e-9 <= shared < alone + 1e-9


class Coins(GumbelCoupling):
    """Keeps tokens by coins."""

    def __init__(self, alpha: float, dice: random.Random) -> None:
        super().__init__(GREEDY, 4)
        self.alpha, self.coins = alpha, dice

    def verify(self, scores, waiting):
        count = len(waiting.tokens)
        kept = next((i for i in range(count) if self.coins.random() >= self.alpha), count)
        return Verdict(torch.tensor([kept]), torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), scores)


class Ones(LookupReader):
    """Every row proposes id 1."""

    def read(self, tokens):
        new, self.seen = max(0, len(tokens) - self.seen), max(self.seen, len(tokens))
        self.rows.fill_(1)
        return (new,)


@pytest.mark.parametrize("name", ["HiSpec", "three levels"])
def test_the_loop_with_coins_is_the_closed_form(name):
    levels, dice, events = CASES[name], random.Random(3), []
    rules = [Coins(level.alpha, dice) for level in levels]
    every = [1, *(level.every for level in levels)]
    stages = [Stage(Ones(3000), LookupHead(4), rule, n) for rule, n in zip([rules[0], *rules], every, strict=True)]
    for step in decode(stages, [1], Limits(2500)):
        events += step.events
    drafted = sum(e.adds for e in events if e.stage == 0)
    free = [level._replace(check=0.0) for level in levels]
    top = [e for e in events if e.stage == len(levels)]
    assert sum(e.kept + 1 for e in top) / len(top) == pytest.approx(nested(1.0, free).tokens, rel=0.07)
    assert drafted / len(top) == pytest.approx(nested(1.0, free).time, rel=0.07)


def test_rows_are_the_final_ones_and_what_was_dropped_above():
    assert rows_read(100, [7, 5]) == [112, 112, 105]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_tokens_per_token([Level(0.5, 2, 1.0)], (8, 4)), "rising order"),
        (lambda: layer_tokens_per_token([Level(0.5, 2, 1.0)], (4,)), "at least two layer numbers"),
        (lambda: layer_tokens_per_token([Level(0.5, 2, 1.0)], (2, 4, 8)), "1 levels need 2 stops"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

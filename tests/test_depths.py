"""What a deeper model would do: prices are recovered, ratios are the closed form's, and goals are told in words."""

from __future__ import annotations

import pytest
import tables_hispec as made

from flashspec.study import depths
from flashspec.study.readings import Missing, where
from flashspec.theory import Level, nested
from flashspec.theory.depth import Prices, Tiers, advantage, first_depth, rate

GRID = made.grid().frame


def test_prices_that_were_put_in_are_found():
    assert depths.prices(GRID, 16) == pytest.approx(made.PRICES)
    assert depths.prices(GRID, 18) != pytest.approx(made.PRICES)


def test_at_one_price_a_row_the_rate_is_that_of_the_papers_costs():
    known = nested(6.0, [Level(0.6, 2, 6.0), Level(0.8, 4, 26.0)])
    found = rate(Tiers((1 / 8, 1 / 4), (0.6, 0.8), (2, 4)), 32, Prices(1.0, 0.0, 2.0, 0.0))
    assert found == pytest.approx(known.throughput)
    assert found != pytest.approx(rate(Tiers((1 / 8, 1 / 4), (0.6, 0.8), (2, 4)), 64, Prices(1.0, 0.0, 2.0, 0.0)))


def test_a_free_middle_that_is_always_right_pays_more_the_deeper_the_model():
    above, below = [Tiers((1 / 8, 1 / 4), (0.5, 1.0), (2, 8))], [Tiers((1 / 8,), (0.5,), (2,))]
    ratios = [(d, advantage(above, below, d, Prices(1.0, 0.0, 4.0, 0.0))) for d in (8, 32, 128)]
    assert ratios == sorted(ratios, key=lambda pair: pair[1])
    assert first_depth(ratios, ratios[1][1]) == 32 and first_depth(ratios, 99.0) is None


def test_a_middle_that_is_never_right_loses_at_every_depth():
    above, below = [Tiers((1 / 8, 1 / 4), (0.5, 0.0), (2, 8))], [Tiers((1 / 8,), (0.5,), (2,))]
    assert all(advantage(above, below, d, Prices(1.0, 0.0, 4.0, 0.0)) < 1 for d in (8, 32, 128))


def test_acceptance_is_pooled_over_schedules():
    assert {t.alphas for t in depths.tiers(GRID, "hispec", 16)} == {(0.7, 0.8)}
    assert {t.alphas for t in depths.tiers(GRID, "self_speculation", 16)} == {(0.7,)}
    assert {t.exits for t in depths.tiers(GRID, "self_speculation", 16)} == {(1 / 16,), (2 / 16,)}


def test_goals_are_told_in_words():
    assert depths.needed([(16, 1.1), (32, 1.3)], 1.28) == "32 layers"
    assert depths.needed([(16, 1.1), (32, 1.2)], 1.28) == "no depth up to 32 layers (at most 1.20×)"
    flat, plain = (depths.advantages(GRID, 16, flat) for flat in (True, False))
    assert flat != plain and [d for d, _ in flat] == list(depths.DEPTHS)


def test_coin_flips_and_the_closed_form_agree_and_the_closed_form_is_nested():
    table = depths.three_ways(GRID, temperature=0.0, rule="speculative")
    assert (table["flipped"] / table["closed"]).tolist() == pytest.approx([1.0] * len(table), rel=0.05)
    one = where(table, n_d=2, n_i=4).iloc[0]
    row = where(GRID, method="hispec", draft_exit=2, verify_exit=4, n_d=2, n_i=4).iloc[0]
    levels = [Level(0.7, 2, row["check_1_seconds"]), Level(0.8, 4, row["check_2_seconds"])]
    assert one["closed"] == pytest.approx(nested(row["draft_seconds"], levels).throughput)
    assert one["measured"] == pytest.approx(170.0)


def test_a_table_without_hierarchies_is_named():
    with pytest.raises(Missing, match="no hierarchy over the target's exits"):
        depths.prices(GRID[GRID["draft_exit"] == 0], 16)

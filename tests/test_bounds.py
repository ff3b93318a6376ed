"""What a hierarchy could gain at most is the closed form without a stage; the acceptance asked for reaches the goal."""

from __future__ import annotations

import pytest
import tables_hispec as made

from flashspec.study import bounds
from flashspec.study.readings import where
from flashspec.theory import tokens_per_check
from flashspec.theory.depth import Prices, Tiers, best_rate, needed_alpha, plain_rate, rate, topped
from flashspec.theory.nested import Level, nested

GRID = made.grid().frame
PRICES = Prices(*made.PRICES)
TIERS = [Tiers((1 / 8, 1 / 4), (0.7, 0.8), (n_d, n_i)) for n_d in (1, 2) for n_i in (4, 6)]


def test_a_free_stage_is_the_closed_form_without_its_time():
    one = TIERS[1]
    check, full = (lambda n: PRICES.action(2, n + 1)), (lambda n: PRICES.action(12, n + 1))
    (a, n_d), (b, n_i) = zip((0.7, 0.8), one.bursts, strict=True)
    draft = PRICES.action(2, 1)
    assert rate(one, 16, PRICES, free=(0,)) == pytest.approx(nested(0.0, [Level(a, n_d, check), Level(b, n_i, full)]).throughput)
    assert rate(one, 16, PRICES, free=(1,)) == pytest.approx(nested(draft, [Level(a, n_d, 0.0), Level(b, n_i, full)]).throughput)
    assert rate(one, 16, PRICES) < min(rate(one, 16, PRICES, free=(stage,)) for stage in (0, 1))
    assert plain_rate(16, PRICES) == pytest.approx(1 / (16 * (1e-4 + 1e-5) + 2e-4 + 5e-5))


def test_every_present_helps_and_none_is_the_measured_one():
    found = {case.gift: case for case in bounds.cases(GRID, 16)}
    plain, sure = found["as it is"], found["whole model keeps all"]
    assert all(case.over_self >= plain.over_self and case.over_plain >= plain.over_plain for case in found.values())
    assert plain.over_self / plain.over_plain == pytest.approx(sure.over_self / sure.over_plain)
    assert bounds.enough([plain, sure], "over_self", plain.over_self) == "as it is or whole model keeps all"
    assert bounds.enough([plain, sure], "over_self", 99.0) == "none of these"
    assert f"whole model keeps all {sure.over_self:.2f}×" in bounds.words(list(found.values()), "over_self")


def test_the_acceptance_asked_for_reaches_the_goal_and_a_little_less_does_not():
    goal = 1.1 * best_rate(TIERS, 16, PRICES)
    needed = needed_alpha(TIERS, 16, PRICES, goal)
    assert needed is not None and 0.8 < needed < 1.0
    assert best_rate(topped(TIERS, needed), 16, PRICES) >= goal > best_rate(topped(TIERS, needed - 2e-3), 16, PRICES)
    assert needed_alpha(TIERS, 16, PRICES, 99 * goal) is None


def test_what_is_asked_is_told_beside_what_there_is():
    assert "out of reach" in bounds.asked(GRID, 16, "self_speculation", 99.0)
    field = bounds.field_of(GRID, 16)
    now = bounds.cases(GRID, 16)[0].over_plain
    told = bounds.asked(GRID, 16, "plain", 1.01 * now)
    needed = needed_alpha(field.hispec, 16, field.prices, 1.01 * now * field.plain)
    assert f"keeps {needed:.2f} of" in told and told.endswith("it keeps 0.80")


def test_the_time_of_a_token_is_that_of_its_stages():
    frame = made.contest().frame
    deep = frame["method"] == "hispec"
    frame = frame.assign(actions_1=40, actions_2=deep * 20, check_2_seconds=deep * 8e-3)
    frame.loc[frame["method"] == "baseline", ["actions_1", "drafted"]] = 0
    setting = {"temperature": 1.0, "rule": "speculative"}
    table = bounds.budget(where(frame, **setting), ("baseline", "self_speculation", "hispec"), **setting)
    assert table.loc["baseline", list(bounds.PARTS)].tolist() == pytest.approx([0.0, 0.0, 30 * 1e-3 * 10])
    assert table.loc["self_speculation", list(bounds.PARTS)].tolist() == pytest.approx([1.2, 0.0, 0.8])
    assert table.loc["hispec", list(bounds.PARTS)].tolist() == pytest.approx([1.2, 0.8, 1.6])
    assert bounds.check_share(frame, **setting) == pytest.approx(0.25)


def test_however_many_wait_a_check_settles_no_more_than_its_limit():
    frame = GRID.assign(kept_2=8, decided_2=10)
    alpha = bounds.stands(frame, "hispec", 2, temperature=0.0, rule="speculative")
    assert alpha == pytest.approx(0.8) and bounds.most_settled(alpha) == pytest.approx(5.0)
    assert tokens_per_check(alpha, 8) < tokens_per_check(alpha, 200) == pytest.approx(5.0)
    assert bounds.most_settled(1.0) == float("inf")

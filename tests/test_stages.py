"""Readings of hierarchies give the costs, gains and shares that were put into a table, and a frame for any slice of it."""

from __future__ import annotations

import pytest
import tables_hispec as made
from tables import line as one

pytest.importorskip("pandas")

from flashspec.study import compare, stages
from flashspec.study.quote import NOT_HERE, said, shown

TABLE = made.factorial()


def test_the_time_of_a_token_is_that_of_its_pieces() -> None:
    late = TABLE.frame[TABLE.frame["finalize"] == "deferred"]
    found = stages.stages(late[late["head"] == "dense"])
    deep = one(found, method="hispec", temperature=0.0)
    spent = {"prompt": 0.04, "drafting": 0.8, "middle checks": 0.8, "full checks": 1.6}
    assert {part: deep[part] for part in stages.PARTS if deep[part]} == pytest.approx(spent)
    assert one(found, method="baseline", temperature=1.0)["plain steps"] == pytest.approx(10.0)
    alone = one(found, method="self_speculation", temperature=0.0)
    assert (alone["middle checks"], alone["full checks"]) == pytest.approx((0.0, 0.8))
    assert (deep["accepts_1"], deep["accepts_2"], deep["check_ratio"]) == pytest.approx((0.8, 0.8, 0.25))
    assert deep["speedup"] == pytest.approx(1.2) and alone["accepts_2"] != alone["accepts_2"]
    eager = stages.stages(TABLE.frame[(TABLE.frame["finalize"] == "eager") | (TABLE.frame["method"] == "baseline")])
    assert one(eager, method="hispec", head="dense", temperature=0.0)["final token"] == pytest.approx(0.2)


def test_every_change_gives_what_was_planted_and_gains_multiply() -> None:
    found = stages.factors(TABLE.frame)
    place = {"method": "hispec", "temperature": 1.0}
    for token, total in made.TOKEN.items():
        line = one(found, change="head", finalize=token, **place)
        assert (line["ratio"], line["over_plain"]) == pytest.approx((1.1, 1.1 * total)) and line["head"] == "flash"
    late = found[(found["change"] == "final token") & (found["method"] == "hispec")]
    assert set(late["head"]) == set(made.HEAD) and late["ratio"].tolist() == pytest.approx([1.2] * len(late))
    both = one(found, change="both", **place)
    assert both["ratio"] == pytest.approx(1.32) == both["product"]


def test_a_head_is_held_against_the_dense_one_of_its_own_format_alone() -> None:
    lonely = TABLE.frame[TABLE.frame["head"] != "dense"]
    assert "head" not in set(stages.factors(lonely)["change"]) and not stages.factors(TABLE.frame).empty


READINGS = (stages.stages, stages.factors)


def test_any_slice_of_a_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "DRAWS", 20)
    few = TABLE.frame[TABLE.frame["prompt"] < 2]
    slices = [few[few[column] == value] for column in ("method", "head", "finalize", "temperature") for value in set(few[column])]
    for reading in READINGS:
        columns = set(reading(few).columns)
        assert all(set(reading(part).columns) == columns for part in slices)


def test_what_is_not_in_a_table_is_said_and_what_is_comes_with_its_sampling() -> None:
    table = stages.factors(TABLE.frame)
    assert said(table, method="magic") == NOT_HERE
    assert NOT_HERE in shown(table[table["method"] == "magic"], {"method": "who"}).data
    assert said(table, "ratio", change="both", method="hispec") == "greedy: 1.32; T = 1, coupling: 1.32"
    page = shown(table, {"method": "who", "product": "product"}).data
    assert "<th>who</th>" in page and "HiSpec" in page and "1.32" in page

"""Figures are functions of the table alone, and name it."""

from __future__ import annotations

import pytest
import tables_drafts
import tables_hispec
from tables import MACHINE, pieces, race, recall_rows, results

pytest.importorskip("seaborn")

from flashspec.study import figures

TIMED = {"step_seconds": 0.01, "prefill_seconds": 0.0, "burst_seconds": 0.004, "check_1_seconds": 0.01, "finalize_seconds": 0.01}
RACE, PIECES = results(race(prompts=4, turns=1).assign(**TIMED)), results(pieces())
RUNS, STEPS = results(tables_drafts.runs()), results(tables_drafts.pieces())
FACTORIAL = tables_hispec.factorial()
OF = {
    "waterfall": (RACE, PIECES), "throughput": (RACE,), "final_token": (RACE,), "ledger": (RACE,),
    "head_recall": (results(recall_rows()),), "draft_race": (RUNS,), "draft_quality": (RUNS, results(tables_drafts.family())),
    "draft_steps": (STEPS,), "predicted_measured": (RUNS,), "sweep": (RUNS,), "combined": (FACTORIAL,),
}  # fmt: skip


def test_every_figure_is_drawn_here() -> None:
    assert {*OF, "answers"} == set(figures.__all__)


@pytest.mark.parametrize("name", OF)
def test_a_figure_names_its_source_and_has_a_page_without_lines(name: str) -> None:
    draw = getattr(figures, name)
    small_print = draw(*OF[name]).figure.get_supxlabel()
    assert f"figures.{name}" in small_print and MACHINE in small_print
    assert "<svg" in draw(*(results(each.frame[:0]) for each in OF[name])).svg


@pytest.mark.parametrize("name", ["throughput", "waterfall"])
def test_the_same_table_gives_the_same_picture_and_another_another(name: str) -> None:
    slower = results(RACE.frame.assign(seconds=RACE.frame["seconds"] * (1 + (RACE.frame["head"] == "flash"))))
    once, again, other = (getattr(figures, name)(table, *OF[name][1:]).svg for table in (RACE, RACE, slower))
    assert once == again != other
    assert "<dc:date>" not in once


def test_a_figure_has_a_mark_for_every_head_and_says_where_there_is_none() -> None:
    axis, *_ = figures.throughput(results(race())).figure.axes
    names = {text.get_text() for text in axis.get_yticklabels()}
    assert names == {"2-layer draft, dense", "2-layer draft, int8", "2-layer draft, flash", "prompt lookup, dense"}
    lone, *_ = figures.throughput(results(race(speed={("baseline", "dense"): 1.0}))).figure.axes
    assert lone.get_title(loc="left") == "not in this table" and len(lone.lines) < len(axis.lines)

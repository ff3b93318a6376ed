"""Figures are functions of the table alone, and name it."""

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
    "waterfall": (RACE, PIECES), "draft_step": (PIECES,), "throughput": (RACE,), "final_token": (RACE,), "ledger": (RACE,),
    "formats": (PIECES,), "peers": (RACE,), "head_speedups": (RACE,), "head_recall": (results(recall_rows()),),
    "head_cost": (PIECES,), "head_depth": (PIECES,), "draft_race": (RUNS,),
    "draft_quality": (RUNS, results(tables_drafts.family())), "draft_steps": (STEPS,), "paper_gain": (STEPS,),
    "draft_space": (RUNS,), "predicted_measured": (RUNS,), "sweep": (RUNS,), "hierarchy": (FACTORIAL,), "combined": (FACTORIAL,),
    "head_gains": (FACTORIAL,), "token_budget": (FACTORIAL,), "schedules": (tables_hispec.screened(),),
    "exit_quality": (tables_hispec.quality(),),
}  # fmt: skip


def test_every_figure_is_drawn_here():
    assert {*OF, "answers"} == set(figures.__all__)


@pytest.mark.parametrize("name", OF)
def test_a_figure_names_its_source_and_has_a_page_without_lines(name):
    draw = getattr(figures, name)
    small_print = draw(*OF[name]).figure.get_supxlabel()
    assert f"figures.{name}" in small_print and MACHINE in small_print
    assert "<svg" in draw(*(results(each.frame[:0]) for each in OF[name])).svg


@pytest.mark.parametrize("name", ["throughput", "waterfall"])
def test_the_same_table_gives_the_same_picture_and_another_another(name):
    slower = results(RACE.frame.assign(seconds=RACE.frame["seconds"] * (1 + (RACE.frame["head"] == "flash"))))
    once, again, other = (getattr(figures, name)(table, *OF[name][1:]).svg for table in (RACE, RACE, slower))
    assert once == again != other and "<dc:date>" not in once


def test_a_figure_has_a_mark_for_every_head_and_says_where_there_is_none():
    axis, *_ = figures.head_speedups(results(race())).figure.axes
    assert {text.get_text() for text in axis.get_yticklabels()} == {"main, dense", "main, int8", "main, flash", "dense"}
    lone, *_ = figures.head_speedups(results(race(speed={("baseline", "dense"): 1.0}))).figure.axes
    assert lone.get_title(loc="left") == "not in this table" and len(lone.lines) < len(axis.lines)

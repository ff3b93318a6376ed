"""Figures are functions of the table alone, and name it."""

from __future__ import annotations

import pytest
import tables
import tables_drafts
import tables_heads
import tables_hispec
from test_chapters_h import pieces
from test_compare import race

pytest.importorskip("seaborn")

from flashspec.study import figures

TIMED = {"step_seconds": 0.01, "prefill_seconds": 0.0, "burst_seconds": 0.004, "check_1_seconds": 0.01, "finalize_seconds": 0.01}
RACE = tables.results("race", race(prompts=4, turns=1).assign(**TIMED))
PIECES = tables.results("parts", pieces())
DRAWN = {
    "waterfall": lambda: figures.waterfall(RACE, PIECES),
    "draft_step": lambda: figures.draft_step(PIECES),
    "throughput": lambda: figures.throughput(RACE),
    "final_token": lambda: figures.final_token(RACE),
    "ledger": lambda: figures.ledger(RACE),
    "formats": lambda: figures.formats(PIECES),
    "peers": lambda: figures.peers(RACE),
    **tables_heads.DRAWN,
    **tables_hispec.DRAWN,
    **tables_drafts.DRAWN,
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_names_its_source(name: str) -> None:
    picture = DRAWN[name]()
    small_print = picture.figure.get_supxlabel()
    assert f"figures.{name}" in small_print
    assert tables.MACHINE in small_print


@pytest.mark.parametrize("name", ["throughput", "waterfall"])
def test_the_same_table_gives_the_same_picture(name: str) -> None:
    once, again = DRAWN[name]().svg, DRAWN[name]().svg
    assert once == again
    assert "<dc:date>" not in once


def test_another_table_gives_another_picture() -> None:
    faster = tables.results("parts", pieces(gain=5.0))
    assert figures.draft_step(PIECES).svg != figures.draft_step(faster).svg

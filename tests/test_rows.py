"""Rows that share their columns: the columns come in the order of the stored tables, whatever the rows inherit."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import tables_drafts
from flashspec.study.experiments.acceptance import Drafting, Row

from flashspec.study import EXPERIMENTS
from flashspec.study.columns import Columns
from flashspec.study.rows import Kept

RESULTS = Path(__file__).parents[1] / "book" / "results"
STORED = sorted(RESULTS.glob("*/*.csv"))


def header(table: Path) -> tuple[str, ...]:
    """The columns of a stored table, in its order."""
    with table.open(encoding="utf-8", newline="") as file:
        return tuple(next(csv.reader(file)))


@pytest.mark.parametrize("table", STORED, ids=lambda table: f"{table.parent.name}/{table.stem}")
def test_a_stored_table_has_the_columns_of_its_experiments_rows(table: Path) -> None:
    assert header(table) == EXPERIMENTS[table.parent.name].columns.names


def test_rows_with_the_same_bases_in_another_order_do_not_fit() -> None:
    @dataclass(frozen=True)
    class Turned(Drafting, Kept):
        """The columns of `Row`, its bases turned round."""

    table = next(each for each in STORED if each.parent.name == "acceptance")
    assert Columns(Row).names == header(table)
    assert Columns(Turned).names != header(table) and set(Columns(Turned).names) <= set(header(table))


@pytest.mark.parametrize("name", ["sweep_350", "draft_throughput", "draft_generalises"])
def test_runs_of_drafts_have_the_columns_of_the_table_with_known_answers(name: str) -> None:
    assert EXPERIMENTS[name].columns.names == tuple(tables_drafts.trial("wide", "code", 2, 0.0, 0))


def test_replayed_counts_have_the_columns_of_the_table_with_known_answers() -> None:
    assert EXPERIMENTS["predicted_vs_measured"].columns.names == tuple(tables_drafts.counts().frame.columns)

"""Rows that share their columns: the columns come in the order of the stored tables, whatever the rows inherit."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashspec.study import EXPERIMENTS
from flashspec.study.columns import Columns
from flashspec.study.experiments.head_tar import Drafting, Row
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
        seconds: float

    table = next(each for each in STORED if each.parent.name == "head_tar")
    assert Columns(Row).names == header(table)
    assert Columns(Turned).names[:13] != header(table)[:13] and set(Columns(Turned).names) <= set(header(table))

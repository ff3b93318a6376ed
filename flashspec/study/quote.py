"""Numbers for the text around a figure: a notebook glues them, pages cite them by name, nobody types them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flashspec.study.compare import contexts
from flashspec.study.style import NAMES

if TYPE_CHECKING:
    from pandas import DataFrame

NOT_HERE = "not in this table"


def quote(**numbers: Any) -> None:
    """Glue each number under its name; an estimate is glued in words, with its interval, and as a number under `name_value`."""
    for name, number in numbers.items():
        if hasattr(number, "low"):
            keep(name, f"{number.value:.2f}× ({number.low:.2f} to {number.high:.2f})")
            keep(f"{name}_value", number.value)
        else:
            keep(name, number)


def keep(name: str, value: Any) -> None:
    """Hand one value to the book, as a plain Python value."""
    from myst_nb import glue

    glue(name, value.item() if hasattr(value, "item") else value, display=False)


def verdict(table: DataFrame, **which: Any) -> str:
    """The verdict in the first line of a table that has these values; says so where there is none."""
    lines = having(table, **which)
    return str(lines["verdict"].iloc[0]) if len(lines) else NOT_HERE


def value(table: DataFrame, column: str = "ratio", **which: Any) -> float:
    """The number in the first line of a table that has these values; NaN where there is none."""
    lines = having(table, **which)
    return float(lines[column].iloc[0]) if len(lines) else float("nan")


def having(table: DataFrame, **which: Any) -> DataFrame:
    """The lines of a table that have these values."""
    for column, wanted in which.items():
        table = table[table[column] == wanted]
    return table


def first(table: DataFrame, column: str) -> str:
    """The first text in a column that is not empty; empty where there is none."""
    return next((text for text in table[column] if text), "")


def digits(value: float, form: str = ".1f") -> str:
    """A number in so many digits, or that the table has none."""
    return NOT_HERE if value != value else format(value, form)


def said(table: DataFrame, column: str = "verdict", **values: Any) -> str:
    """One column of the lines with these values, a context after the other, the best line of each; or that none is there."""
    lines = table
    for name, value in values.items():
        lines = lines[lines[name] == value]
    lines = lines.sort_values("ratio", ascending=False) if "ratio" in lines else lines
    found = [(name, each[column].iloc[0]) for name, each in contexts(lines)]
    return "; ".join(f"{name}: {value if isinstance(value, str) else f'{value:.2f}'}" for name, value in found) or NOT_HERE


def shown(table: DataFrame, columns: Mapping[str, str]) -> Any:
    """These columns of a table under these names, a line a row behind its sampling, two digits; columns of nothing left out."""
    import pandas
    from IPython.display import HTML

    if table.empty:
        return HTML(f"<p>{NOT_HERE}</p>")
    lines = pandas.concat([each.assign(sampling=name) for name, each in contexts(table)]) if "rule" in table else table
    cells = lines[["sampling", *columns] if "rule" in table else list(columns)].replace({"method": NAMES})
    cells = cells.replace("", None).dropna(axis=1, how="all").rename(columns=dict(columns))
    return HTML(cells.to_html(index=False, float_format="{:.2f}".format, na_rep="", border=0, justify="left"))

"""Numbers for the text around a figure: a notebook glues them, pages cite them by name, and no one types them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashspec.study.compare import sampled
from flashspec.study.frames import DataFrame, having, pivoted

NOT_HERE = "not in this table"
NAMED = ("method", "head", "draft", "name")
NAMES = {
    "draft_model": "second model", "self_speculation": "self-speculation", "hispec": "HiSpec",
    "hispec_adaptive": "HiSpec, adaptive", "hispec_typical": "HiSpec, lossy middle", "lookup": "prompt lookup",
    "flash": "FlashHead", "main": "2-layer draft", "shallow": "1-layer draft", "qwen3-0.6b": "Qwen3-0.6B shape",
}  # fmt: skip


def named(name: str) -> str:
    """What a figure or a page calls a method, head, draft or shape."""
    return NAMES.get(name, name)


def quote(**numbers: Any) -> None:
    """Glue each number under its name, as a plain Python value."""
    from myst_nb import glue

    for name, number in numbers.items():
        glue(name, number.item() if hasattr(number, "item") else number, display=False)


def cell(table: DataFrame, column: str, **which: Any) -> Any:
    """The value of a column in the first line with these values; None where there is no such line."""
    return next(iter(table.loc[having(table, which), column]), None)


def verdict(table: DataFrame, column: str = "verdict", **which: Any) -> str:
    """The words in the first line with these values; NOT_HERE where there are none."""
    return cell(table, column, **which) or NOT_HERE


def value(table: DataFrame, column: str = "ratio", **which: Any) -> float:
    """The number in the first line with these values; NaN where there is none."""
    found = cell(table, column, **which)
    return float("nan") if found is None else float(found)


def first(table: DataFrame, column: str) -> str:
    """The first non-empty text in a column; empty where there is none."""
    return next((text for text in table[column] if text), "")


def digits(value: float, form: str = ".1f") -> str:
    """A number in this format; NOT_HERE for NaN."""
    return NOT_HERE if value != value else format(value, form)


def shown(table: DataFrame, columns: Mapping[str, str] | None = None, across: bool = False) -> Any:
    """Columns of a table, all or these under these names, after its sampling: two digits, whole numbers as such.

    With `across` the last of them has a column for each sampling. Columns of nothing are left out, and so are words that are the
    same in all of several lines, unless they come last.
    """
    from IPython.display import HTML

    if table.empty:
        return HTML(f"<p>{NOT_HERE}</p>")
    lines = sampled(table) if "rule" in table else table
    columns, context = columns or {}, ["sampling"] if "sampling" in lines else []
    cells = lines[list(dict.fromkeys([*context, *columns])) if columns else list(table)].replace(dict.fromkeys(NAMED, NAMES))
    last = list(cells)[-1:]
    if across and context:
        (_, *down, value), last = cells, list(cells["sampling"].unique())
        cells = pivoted(cells, down, "sampling", value).reindex(columns=[*down, *last])
    cells = cells.replace("", None).dropna(axis=1, how="all")
    words = cells.columns.difference([*cells.select_dtypes("number"), *last])
    cells = cells.drop(columns=[name for name in words if len(cells) > 1 and cells[name].nunique(dropna=False) == 1])
    whole = [name for name in cells.select_dtypes("number") if (cells[name].dropna() % 1 == 0).all()]
    forms = [(lambda number: "" if number != number else f"{number:.0f}") if name in whole else None for name in cells]
    looks = {"float_format": "{:.2f}".format, "na_rep": "", "border": 0, "justify": "left"}
    cells.columns = [columns.get(name, name) for name in cells]
    return HTML(cells.to_html(index=False, formatters=forms, **looks))

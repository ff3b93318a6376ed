"""Numbers for the text around a figure: a notebook glues them, pages cite them by name, nobody types them."""

from __future__ import annotations

from typing import Any

from flashspec.measure.bench import Interval
from flashspec.study.readings import words


def quote(**numbers: Any) -> None:
    """Glue each number under its name; a ratio is glued as words, with its interval, and as a number under `name_value`."""
    for name, number in numbers.items():
        if isinstance(number, Interval):
            keep(name, words(number))
            keep(f"{name}_value", number.value)
        else:
            keep(name, number)


def keep(name: str, value: Any) -> None:
    """Hand one value to the book, as a plain Python value."""
    from myst_nb import glue

    glue(name, value.item() if hasattr(value, "item") else value, display=False)

"""Panels side by side, one a value of a column."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashspec.study.readings import where
from flashspec.study.style import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


Draw = Callable[["Axes", "DataFrame"], None]


def panels(table: DataFrame, column: str, draw: Draw, words: tuple[str, str], **options: Any) -> Figure:
    """One panel a value of `column`, drawn from its rows; `words`: its title, which names the value, and the vertical label."""
    values = sorted(table[column].unique())
    figure, axes = canvas(len(values), sharey=True, **options)
    for axis, value in zip(axes, values, strict=True):
        draw(axis, where(table, **{column: value}))
        axis.set_title(words[0].format(value))
    axes[0].set_ylabel(words[1])
    return figure

"""What figures are made of: panels, points with intervals and stacked bars, drawn from tables that name their lines."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from flashspec.study.compare import sampled
from flashspec.study.frames import DataFrame
from flashspec.study.quote import NOT_HERE
from flashspec.study.style import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5f6368")
PLAIN = {"label": "", "up": 0.0, "hollow": False, "rank": 0.0}
ACROSS = 3  # panels


def canvas(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure at page width with panels side by side, each `height` inches high."""
    figure = page(height)
    return figure, list(figure.subplots(1, panels, squeeze=False).flat)


def panelled(table: DataFrame, height: float) -> tuple[Figure, list[tuple[Axes, DataFrame]]]:
    """A titled panel for each `panel` of a table, with its lines; one that says so where there is none."""
    groups = list(table.groupby("panel", sort=False)) or [(NOT_HERE, table)]
    across = min(ACROSS, len(groups))
    rows = -(-len(groups) // across)
    figure = page(height * rows)
    axes = list(figure.subplots(rows, across, squeeze=False, sharey=True).flat)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    found = []
    for axis, (name, lines) in zip(axes, groups, strict=False):
        axis.set_title(str(name), fontsize=9)
        found.append((axis, lines))
    return figure, found


def by_sampling(table: DataFrame) -> DataFrame:
    """A table with a panel for each sampling."""
    found = sampled(table)
    return found.assign(panel=found["sampling"])


def overlaid(table: DataFrame) -> DataFrame:
    """A table in one panel, with a colour for each sampling, one above the other in a row."""
    found = sampled(table).assign(panel="")
    place = found["sampling"].map(list(dict.fromkeys(found["sampling"])).index).astype(int)
    shades, up = place.map(lambda each: SHADES[each % len(SHADES)]), 0.3 - 0.6 * (place + 0.5) / max(1, place.nunique())
    return found.assign(shade=shades, label=found["sampling"], up=up)


def keyed(figure: Figure) -> Figure:
    """A legend of everything labelled, beside the panels, in place of their own."""
    for own in [axis.get_legend() for axis in figure.axes]:
        if own is not None:
            own.remove()
    found = {name: mark for axis in figure.axes for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        names = [fill(name, 22) for name in found]
        figure.legend(found.values(), names, loc="outside right upper", fontsize=8, labelspacing=0.7)
    return figure


def rows_of(axis: Axes, names: list[str], words: str) -> None:
    """Label the rows of a panel, from the bottom, and its horizontal axis."""
    axis.set_yticks(range(len(names)), [fill(name, 30) for name in names], fontsize=8)
    axis.set(ylim=(-0.6, max(1, len(names)) - 0.4), xlabel=fill(words, 44 // min(ACROSS, len(axis.figure.axes))))
    axis.grid(axis="y", visible=False)


def forest(table: DataFrame, words: str, each: float = 0.3) -> Figure:
    """A row for each `line`, by `rank`: its ratio with its interval, hollow where `hollow`, and its prediction; dashed: 1.

    A mark has its `shade`, its `label` in the legend, and is shifted `up` from the middle of its row.
    """
    table = table.assign(**{name: value for name, value in PLAIN.items() if name not in table})
    names = list(dict.fromkeys(table.sort_values("rank", kind="stable")["line"]))[::-1]
    figure, parts = panelled(table, 1.2 + each * max(3, len(names)))
    for axis, lines in parts:
        lines = lines.assign(spot=lines["line"].map(names.index).astype(float) + lines["up"])
        for (shade, label, hollow), mine in lines.groupby(["shade", "label", "hollow"], sort=False):
            looks = {"color": shade, "markerfacecolor": "white" if hollow else shade, "label": label or None}
            axis.errorbar(mine["ratio"], mine["spot"], xerr=reach(mine), fmt="o", markersize=5, capsize=2, **looks)
        if "predicted" in lines and len(lines):
            axis.plot(lines["predicted"], lines["spot"], "x", color="black", label="predicted from parts and counts")
        axis.axvline(1.0, color="#666666", linestyle="--", linewidth=1)
        rows_of(axis, names, words)
    return keyed(figure)


def reach(table: DataFrame) -> list[Any]:
    """Lengths of error bars on both sides of the ratios; none where there is no interval."""
    return [(table["ratio"] - table["low"]).fillna(0), (table["high"] - table["ratio"]).fillna(0)]


def stacked(table: DataFrame, parts: Mapping[str, str], whole: str) -> Figure:
    """A bar for each `line`, its parts end to end in their colours, in ms; the tick is the measured total."""
    names = list(dict.fromkeys(table["line"]))[::-1]
    figure, panels = panelled(table, 1.2 + 0.28 * max(3, len(names)))
    for axis, lines in panels:
        spots, left = lines["line"].map(names.index).astype(float), 0.0 * lines[whole]
        for part, shade in parts.items():
            axis.barh(spots, lines[part], left=left, height=0.65, color=shade, label=part if lines[part].any() else None)
            left = left + lines[part].fillna(0.0)
        axis.plot(lines[whole], spots, "|", color="black", markersize=11, label="measured whole")
        rows_of(axis, names, "milliseconds a token")
    return keyed(figure)

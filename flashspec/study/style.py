"""How every figure looks, what it is made of, and what its file says of its function, its tables and their machines.

Figures are drawn from tables that name their lines and say what their marks look like.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.models.writing import write_text
from flashspec.study.compare import sampled
from flashspec.study.frames import DataFrame
from flashspec.study.quote import NOT_HERE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # of the thesis, and of heads; others are grey
    "thesis": "#000000", "dense": "#0072B2", "int8": "#009E73", "int4": "#A0522D", "flash": "#D55E00", "flash_int8": "#E69F00",
    "flash_int4": "#B8860B", "ivf": "#56B4E9", "ivfpq": "#44AA99", "hnsw": "#332288", "in_context": "#117733",
    "vocab_trim": "#882255", "fr_spec": "#CC79A7", "preview": "#999933",
}  # fmt: skip
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5f6368")
MARKED = {"label": "", "hollow": False, "mark": "o", "alpha": 1.0, "up": 0.0, "rank": 0.0}  # columns at their defaults
LOOKS = ["shade", "label", "hollow", "mark", "alpha"]
WIDTH, ACROSS = 7.0, 3  # inches, and panels


class Picture(NamedTuple):
    """A drawn figure: the matplotlib object, the SVG that pages show, and the line that a notebook writes under it."""

    figure: Figure
    svg: str
    source: str

    def __repr__(self) -> str:
        return f"Picture of {len(self.svg)} characters"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/html": f"{self.svg}<p><small>{self.source}</small></p>"}

    def save(self, path: Path) -> None:
        """Write the SVG to a file, only if it would change it."""
        if not path.exists() or path.read_text(encoding="utf-8") != self.svg:
            write_text(self.svg, path)


def colour(name: str) -> str:
    """The colour of a head, the same in every figure."""
    return COLOURS.get(name, "#5f6368")


def drawn(draw: Callable[..., Figure]) -> Callable[..., Picture]:
    """A figure function whose picture names it, its tables, and their machines with their days, as an SVG file calls them."""

    @functools.wraps(draw)
    def picture(*results: Any, **options: Any) -> Picture:
        import matplotlib

        settings: Any = look()
        with matplotlib.rc_context(settings):
            figure = finished(draw(*results, **options))
            tables = dict.fromkeys(f"{each.path.parent.name}/{each.path.stem}" for each in results)
            machines = dict.fromkeys(each.machine for each in results)
            facts = {"Identifier": f"figures.{draw.__name__}", "Relation": " ".join(tables), "Coverage": "; ".join(machines)}
            return Picture(figure, svg(figure, facts), " · ".join(filter(None, facts.values())))

    return picture


def look() -> dict[str, Any]:
    """Matplotlib settings: restrained, readable at page width, the same bytes for the same data."""
    import seaborn
    from cycler import cycler

    return {
        **seaborn.plotting_context("notebook", font_scale=0.85),
        **seaborn.axes_style("ticks", {"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False}),
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=seaborn.color_palette("colorblind")),
        "axes.edgecolor": "#666666",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "font.family": "DejaVu Sans",
        "figure.facecolor": "white",
        "svg.hashsalt": "flashspec",
        "svg.fonttype": "path",
    }


def page(height: float) -> Figure:
    """An empty figure at page width, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def finished(figure: Figure) -> Figure:
    """Numbers of logarithmic axes as 1, 2, 5, 10 instead of powers, and one legend of everything labelled beside the panels."""
    from matplotlib.ticker import LogLocator

    found = dict[str, Any]()
    for axis in figure.axes:
        found |= {name: mark for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        for side in (each for each in (axis.xaxis, axis.yaxis) if each.get_scale() == "log"):
            side.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("")
    if found:
        names = [fill(name, 22) for name in found]
        figure.legend(found.values(), names, loc="outside right upper", fontsize=8, labelspacing=0.7)
    return figure


def svg(figure: Figure, facts: dict[str, str]) -> str:
    """The figure as SVG text with its origin and without a date, so that the same table gives the same bytes."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, **facts})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def shaded(names: Any) -> list[str]:
    """A colour for each name in a column, in the order in which they appear."""
    return [SHADES[place % len(SHADES)] for place in names.factorize()[0]]


def marked(table: DataFrame) -> DataFrame:
    """A table with what it does not say of its marks."""
    return table.assign(**{name: value for name, value in MARKED.items() if name not in table})


def points(axis: Axes, table: DataFrame, x: str, y: str, along: str = "y") -> None:
    """The marks of a table at two of its columns, each ratio with its interval along an axis if it has one.

    A `mark` has its `shade` and `alpha`, is white inside where `hollow`, and has its `label` in the legend.
    """
    for (shade, label, hollow, mark, alpha), rows in marked(table).groupby(LOOKS, sort=False):
        ends: dict[str, Any] = {}
        if "low" in rows:
            ends[f"{along}err"] = [(rows["ratio"] - rows["low"]).fillna(0), (rows["high"] - rows["ratio"]).fillna(0)]
        known = {"color": shade, "markerfacecolor": "white" if hollow else shade, "label": label or None}
        axis.errorbar(rows[x], rows[y], fmt=mark, markersize=5, capsize=2, alpha=alpha, **known, **ends)


def plotted(table: DataFrame, x: str, y: str, height: float, **settings: Any) -> Figure:
    """A page of one panel: the marks of a table at two of its columns, under these settings of its axes."""
    figure = page(height)
    axis = figure.subplots()
    points(axis, table, x, y)
    axis.set(**settings)
    return figure


def panelled(table: DataFrame, each: float, words: str) -> tuple[Figure, list[tuple[Axes, DataFrame]]]:
    """A panel for each `panel` of a table, or else each sampling, with its lines; one that says so where there is none.

    Every `line` is a row, `each` inches high, by `rank` from the top; a mark is `up` from its middle, at `spot`. `words` are
    those of the horizontal axes.
    """
    table = marked(sampled(table))
    names = list(dict.fromkeys(table.sort_values("rank", kind="stable")["line"]))[::-1]
    table = table.assign(spot=table["line"].map(names.index).astype(float) + table["up"])
    groups = list(table.groupby("panel" if "panel" in table else "sampling", sort=False)) or [(NOT_HERE, table)]
    across = min(ACROSS, len(groups))
    down = -(-len(groups) // across)
    figure = page(down * (1.2 + each * max(3, len(names))))
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    for axis, (name, _) in zip(axes, groups, strict=False):
        axis.set_title(str(name), fontsize=9)
        axis.set_yticks(range(len(names)), [fill(text, 30) for text in names], fontsize=8)
        axis.set(ylim=(-0.6, max(1, len(names)) - 0.4), xlabel=fill(words, 44 // across))
        axis.grid(axis="y", visible=False)
    return figure, [(axis, lines) for axis, (_, lines) in zip(axes, groups, strict=False)]


def overlaid(table: DataFrame) -> DataFrame:
    """A table in one panel, with a colour for each sampling, one above the other in a row."""
    found = sampled(table)
    place, names = found["sampling"].factorize()
    up = 0.3 - 0.6 * (place + 0.5) / max(1, len(names))
    return found.assign(panel="", shade=shaded(found["sampling"]), label=found["sampling"], up=up)


def forest(table: DataFrame, words: str, each: float = 0.3) -> Figure:
    """A row for each `line`: its ratio with its interval, and its prediction; dashed: 1."""
    figure, panels = panelled(table, each, words)
    for axis, lines in panels:
        points(axis, lines, "ratio", "spot", "x")
        if "predicted" in lines and len(lines):
            axis.plot(lines["predicted"], lines["spot"], "x", color="black", label="predicted from parts and counts")
        axis.axvline(1.0, color="#666666", linestyle="--", linewidth=1)
    return figure

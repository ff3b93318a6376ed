"""How every figure looks, and what its file says of the function, the tables and the machines that it comes from."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from flashspec.models.writing import write_text

SHADES = {
    "#000000": "thesis",
    "#5f6368": "baseline transformers",
    "#0072B2": "dense draft_model main bfloat16 flashspec",
    "#D55E00": "flash",
    "#56B4E9": "self_speculation float32 ivf",
    "#44AA99": "ivfpq",
    "#009E73": "hispec shallow int8",
    "#117733": "hispec_adaptive in_context",
    "#882255": "hispec_typical vocab_trim",
    "#CC79A7": "lookup fr_spec qwen3-0.6b",
    "#E69F00": "flash_int8",
    "#B8860B": "flash_int4",
    "#A0522D": "int4",
    "#332288": "hnsw",
    "#999933": "preview",
}
COLOURS = {name: shade for shade, names in SHADES.items() for name in names.split()}
NAMES = {
    "draft_model": "second model",
    "self_speculation": "self-speculation",
    "hispec": "HiSpec",
    "hispec_adaptive": "HiSpec, adaptive",
    "hispec_typical": "HiSpec, lossy middle",
    "lookup": "prompt lookup",
    "flash": "FlashHead",
    "main": "2-layer draft",
    "shallow": "1-layer draft",
    "qwen3-0.6b": "Qwen3-0.6B shape",
}
WIDTH = 7.0


class Picture(NamedTuple):
    """A drawn figure: the matplotlib object, the SVG that pages show, and the line that a notebook writes under it."""

    figure: Figure
    svg: str
    source: str

    def __repr__(self) -> str:
        return f"Picture of {len(self.svg)} characters"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/html": f"{self.svg}<p><small>{self.source}</small></p>"}

    def save(self, path: str | Path) -> None:
        """Write the SVG to a file, only if it would change it."""
        path = Path(path)
        if not path.exists() or path.read_text(encoding="utf-8") != self.svg:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.svg, path)


def named(name: str) -> str:
    """What a figure or a page calls a method, head, draft or shape."""
    return NAMES.get(name, name)


def drawn(draw: Callable[..., Figure]) -> Callable[..., Picture]:
    """A figure function whose picture names it, its tables and their machines."""

    @functools.wraps(draw)
    def picture(*results: Any, **options: Any) -> Picture:
        import matplotlib

        settings: Any = look()
        with matplotlib.rc_context(settings):
            figure = draw(*results, **options)
            facts = origin(draw.__name__, results)
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


def origin(function: str, results: tuple[Any, ...]) -> dict[str, str]:
    """Function, tables, and machines with their days, under the names that an SVG file has for them."""
    tables = dict.fromkeys(f"{each.path.parent.name}/{each.path.stem}" for each in results)
    machines = dict.fromkeys(each.machine for each in results)
    return {"Identifier": f"figures.{function}", "Relation": " ".join(tables), "Coverage": "; ".join(machines)}


def svg(figure: Figure, facts: dict[str, str]) -> str:
    """The figure as SVG text with its origin and without a date, so that the same table gives the same bytes."""
    page = io.StringIO()
    figure.savefig(page, format="svg", metadata={"Date": None, "Creator": None, **facts})
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def colour(name: str) -> str:
    """The colour of a method, draft or shape, the same in every figure."""
    return COLOURS.get(name, "#5f6368")


def plain_ticks(axis: Axes) -> None:
    """Write the numbers of logarithmic axes as 1, 2, 5, 10 instead of powers."""
    from matplotlib.ticker import LogLocator

    for side, scale in ((axis.xaxis, axis.get_xscale()), (axis.yaxis, axis.get_yscale())):
        if scale == "log":
            side.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("")

"""How every figure looks, and the line under it that says which function drew it from which table on which machine."""

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
from flashspec.theory import Interval

COLOURS = {
    "baseline": "#5f6368",
    "dense": "#0072B2",
    "draft_model": "#0072B2",
    "flash": "#D55E00",
    "self_speculation": "#56B4E9",
    "hispec": "#009E73",
    "hispec_flash": "#E69F00",
    "hispec_adaptive": "#117733",
    "hispec_typical": "#882255",
    "lookup": "#CC79A7",
    "thesis": "#000000",
    "main": "#0072B2",
    "shallow": "#009E73",
    "qwen3-0.6b": "#CC79A7",
    "reference-draft": "#0072B2",
    "reference-shallow": "#009E73",
    "bfloat16": "#0072B2",
    "float32": "#56B4E9",
    "int4": "#D55E00",
    "int8": "#009E73",
    "flash_int8": "#E69F00",
    "flash_int4": "#B8860B",
    "ivf": "#56B4E9",
    "ivfpq": "#88CCEE",
    "hnsw": "#332288",
    "fr_spec": "#CC79A7",
    "vocab_trim": "#882255",
    "in_context": "#117733",
    "preview": "#F0E442",
    "spherical": "#0072B2",
    "euclidean": "#D55E00",
    "flashspec": "#0072B2",
    "transformers": "#5f6368",
}
NAMES = {
    "baseline": "baseline",
    "draft_model": "second model",
    "bf16": "bfloat16",
    "fp32": "float32",
    "int4": "int4 (AWQ)",
    "dense": "dense draft head",
    "self_speculation": "self-speculation",
    "hispec": "HiSpec",
    "hispec_flash": "HiSpec, FlashHead",
    "hispec_adaptive": "HiSpec, adaptive",
    "hispec_typical": "HiSpec, lossy middle",
    "lookup": "prompt lookup",
    "flash": "FlashHead draft head",
    "main": "2-layer draft",
    "shallow": "1-layer draft",
    "thesis": "the thesis",
    "reference-target": "reference target",
    "reference-draft": "reference draft, 2 layers",
    "reference-shallow": "reference draft, 1 layer",
    "qwen3-0.6b": "Qwen3-0.6B shape",
}
PARTS = {
    "prefill": "#d9d9d9",
    "draft body": "#0072B2",
    "draft head": "#56B4E9",
    "draw": "#a6cee3",
    "check body": "#117733",
    "check head": "#88c999",
    "verify body": "#D55E00",
    "verify head": "#E69F00",
    "accept": "#F0E442",
    "finalize": "#CC79A7",
    "rollback": "#882255",
    "host": "#7f7f7f",
}
WIDTH = 8.4


class Picture(NamedTuple):
    """A drawn figure: the matplotlib object, and the SVG that notebooks and pages show."""

    figure: Figure
    svg: str

    def __repr__(self) -> str:
        return f"Picture of {len(self.svg)} characters"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg}

    def save(self, path: str | Path) -> None:
        """Write the SVG to a file, only if it would change it."""
        path = Path(path)
        if not path.exists() or path.read_text(encoding="utf-8") != self.svg:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.svg, path)


def drawn(draw: Callable[..., Figure]) -> Callable[..., Picture]:
    """A figure function whose picture names it, its tables and their machines underneath."""

    @functools.wraps(draw)
    def picture(*results: Any, **options: Any) -> Picture:
        import matplotlib

        settings: Any = look()
        with matplotlib.rc_context(settings):
            figure = draw(*results, **options)
            footer(figure, draw.__name__, results)
            return Picture(figure, svg(figure))

    return picture


def look() -> dict[str, Any]:
    """Matplotlib settings: restrained, readable at page width, the same bytes for the same data."""
    import seaborn

    return {
        **seaborn.plotting_context("notebook", font_scale=0.85),
        **seaborn.axes_style("ticks", {"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False}),
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
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


def canvas(panels: int = 1, height: float = 3.7, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure at page width with panels side by side."""
    figure = page(height)
    return figure, list(figure.subplots(1, panels, squeeze=False, **options)[0])


def stack(heights: list[int], inch: float = 0.27) -> tuple[Figure, list[Axes]]:
    """A figure at page width with panels one above the other, each as high as its number of lines asks."""
    figure = page(inch * sum(heights) + 0.85 * len(heights) + 0.3)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=[height + 1 for height in heights])
    return figure, list(axes[:, 0])


def page(height: float) -> Figure:
    """An empty figure at page width, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def footer(figure: Figure, function: str, results: tuple[Any, ...]) -> None:
    """Write function, tables, machines and days in small print under the figure."""
    tables = ", ".join(f"{each.path.parent.name}/{each.path.stem}" for each in results)
    machines = "; ".join(dict.fromkeys(each.machine for each in results))
    figure.supxlabel(f"figures.{function} · {tables}\n{machines}", fontsize=7, color="#777777", x=0.01, ha="left")


def svg(figure: Figure) -> str:
    """The figure as SVG text without a date, so that the same table gives the same bytes."""
    page = io.StringIO()
    figure.savefig(page, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def colour(name: str) -> str:
    """The colour of a method, draft or shape, the same in every figure."""
    return COLOURS.get(name, COLOURS.get(name.partition("-")[0], "#5f6368"))


def error(interval: Interval) -> list[list[float]] | None:
    """Error bar lengths of an interval, None where it has none."""
    if interval.low != interval.low:
        return None
    return [[interval.value - interval.low], [interval.high - interval.value]]


def plain_ticks(axis: Axes) -> None:
    """Write the numbers of logarithmic axes as 1, 2, 5, 10 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side, scale in ((axis.xaxis, axis.get_xscale()), (axis.yaxis, axis.get_yscale())):
        if scale == "log":
            side.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            side.set_minor_formatter(NullFormatter())

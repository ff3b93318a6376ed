"""Figures that join theory and measurement of hierarchies: nested stages three ways, and what a deeper model would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import depths, papers
from flashspec.study.figures.panels import panels
from flashspec.study.readings import where
from flashspec.study.style import canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

WAYS = {"measured": ("o", "#009E73"), "closed": ("_", "#000000"), "flipped": ("x", "#D55E00")}
CALLED = {"measured": "measured", "closed": "closed form", "flipped": "coin flips"}


@drawn
def nested_stages(results: Any, temperature: float = 0.0, rule: str = "speculative") -> Figure:
    """Tokens per second of HiSpec at its tuned exits by N_d and N_i: measured, by the closed form and by coin flips."""
    table = depths.three_ways(results.frame, temperature=temperature, rule=rule)
    figure = panels(table, "n_d", ways, ("$N_d$ = {}", "tokens per second"), height=3.4)
    figure.axes[0].legend(fontsize=7)
    return figure


def ways(axis: Axes, table: DataFrame) -> None:
    """Three marks for every N_i."""
    for way, (mark, shade) in WAYS.items():
        axis.plot(table["n_i"], table[way], mark, color=shade, label=CALLED[way], markersize=7)
    axis.set(xlabel="$N_i$", ylim=(0, None), xticks=sorted(table["n_i"]))


@drawn
def depth_forecast(results: Any, quality: Any, temperature: float = 0.0, rule: str = "speculative") -> Figure:
    """HiSpec over self-speculation, both tuned, foretold for deeper models; dashed: the average that HiSpec's paper gives."""
    layers = int(quality.frame["layers"].iloc[0])
    frame = where(results.frame, temperature=temperature, rule=rule)
    figure, (axis,) = canvas(height=3.6)
    for flat, name in ((False, "checks as measured"), (True, "a check costs one row")):
        curve = depths.advantages(frame, layers, flat)
        style = "o--" if flat else "o-"
        axis.plot([d for d, _ in curve], [r for _, r in curve], style, color=colour("hispec"), label=name, markersize=4)
    axis.axhline(papers.hispec("over_self"), color="#666666", linestyle=":", label="HiSpec's paper")
    axis.axhline(1.0, color="#666666", linewidth=1)
    axis.set(xscale="log", xlabel="layers of the model", ylabel="HiSpec over self-speculation", title=f"T = {temperature:g}")
    axis.set_xticks([d for d, _ in curve], [str(d) for d, _ in curve])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure

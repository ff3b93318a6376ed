"""Figures that join theory and measurement of hierarchies: nested stages three ways, and what a deeper model would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import bounds, depths, heights, papers
from flashspec.study.figures.hierarchies import by_setting
from flashspec.study.figures.panels import panels
from flashspec.study.readings import where
from flashspec.study.style import NAMES, canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

WAYS = {"measured": ("o", "#009E73"), "closed": ("_", "#000000"), "flipped": ("x", "#D55E00")}
FORECAST = ("T = {:g}", "HiSpec over self-speculation")
CALLED = {"measured": "measured", "closed": "closed form", "flipped": "coin flips"}


@drawn
def nested_stages(results: Any, temperature: float = 0.0, rule: str = "speculative") -> Figure:
    """Tokens per second of HiSpec by N_d and N_i: measured, by the closed form and by coin flips."""
    table = depths.three_ways(results.frame, temperature=temperature, rule=rule)
    exits = " and ".join(str(table[name].iloc[0]) for name in depths.EXITS)
    figure = panels(table, "n_d", ways, ("$N_d$ = {}", f"tokens per second, exits {exits}"), height=3.4)
    figure.axes[0].set_ylim(0, 1.08 * table[list(WAYS)].max().max())
    figure.axes[0].legend(fontsize=7)
    return figure


def ways(axis: Axes, table: DataFrame) -> None:
    """Three marks for every N_i."""
    for way, (mark, shade) in WAYS.items():
        axis.plot(table["n_i"], table[way], mark, color=shade, label=CALLED[way], markersize=7)
    axis.set(xlabel="$N_i$", xticks=sorted(table["n_i"]))


@drawn
def depth_forecast(results: Any, quality: Any, rule: str = "speculative") -> Figure:
    """HiSpec over self-speculation, both tuned, foretold for deeper models, a panel a temperature; dotted: HiSpec's paper."""
    layers, table = int(quality.frame["layers"].iloc[0]), where(results.frame, rule=rule)
    figure = panels(table, "temperature", lambda axis, rows: deeper(axis, rows, layers), FORECAST, height=3.6)
    figure.axes[0].legend(fontsize=8)
    return figure


def deeper(axis: Axes, frame: DataFrame, layers: int) -> None:
    """The ratio by depth, with checks as they were measured, and as dear as one row."""
    for flat, name in ((False, "checks as measured"), (True, "a check costs one row")):
        curve = depths.advantages(frame, layers, flat)
        style = "o--" if flat else "o-"
        axis.plot([d for d, _ in curve], [r for _, r in curve], style, color=colour("hispec"), label=name, markersize=4)
    axis.axhline(papers.hispec("over_self"), color="#666666", linestyle=":", label="HiSpec's paper")
    axis.axhline(1.0, color="#666666", linewidth=1)
    axis.set(xscale="log", xlabel="layers of the model")
    axis.set_xticks([d for d, _ in curve], [str(d) for d, _ in curve], fontsize=7)
    axis.minorticks_off()


@drawn
def ceilings(results: Any, quality: Any, rule: str = "speculative") -> Figure:
    """HiSpec at its best schedule with a present, over rivals that get none: closed form; dashed: what was asked for."""
    layers, frame = int(quality.frame["layers"].iloc[0]), where(results.frame, rule=rule)
    figure, axes = canvas(2, 3.4, sharey=True)
    hot = sorted(set(frame["temperature"]))
    for place, temperature in enumerate(hot):
        cases = bounds.cases(where(frame, temperature=temperature), layers)
        spots = [spot + 0.36 * (place - (len(hot) - 1) / 2) for spot in range(len(cases))]
        for axis, column in zip(axes, ("over_self", "over_plain"), strict=True):
            values = [getattr(case, column) for case in cases]
            axis.barh(spots, values, height=0.34, color=f"C{place}", label=f"T = {temperature:g}")
            for spot, value in zip(spots, values, strict=True):
                axis.annotate(f"{value:.2f}", (value, spot), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    for axis, name, goal in zip(axes, ("self-speculation", "plain decoding"), ("over_self", "over_baseline"), strict=True):
        axis.axvline(papers.hispec(goal), color="#666666", linestyle="--", linewidth=1)
        axis.set(xlabel=f"HiSpec over {name}", ylim=(len(bounds.GIFTS) - 0.5, -0.5))
        axis.set_yticks(range(len(bounds.GIFTS)), [gift.name for gift in bounds.GIFTS], fontsize=8)
        axis.margins(x=0.12)
        axis.grid(axis="y", visible=False)
    axes[0].legend(fontsize=8, loc="lower right")
    return figure


SHADES = ("#E69F00", "#009E73", "#0072B2")


@drawn
def token_budget(results: Any, rule: str = "speculative") -> Figure:
    """Where the time of a final token goes: stages priced one by one (bars), and the whole as it was timed (dots)."""
    figure, axes = by_setting(results.frame, rule, spent)
    axes[0].legend(fontsize=7)
    return figure


def spent(axis: Axes, frame: DataFrame, setting: dict[str, Any]) -> None:
    """One stack of stages a method."""
    table = bounds.budget(frame, ("baseline", "self_speculation", "hispec"), **setting)
    places, floor = range(len(table)), 0.0 * table["measured"].to_numpy()
    for part, shade in zip(bounds.PARTS, SHADES, strict=True):
        axis.barh(places, table[part], left=floor, height=0.6, color=shade, label=part)
        floor = floor + table[part].to_numpy()
    axis.plot(table["measured"], places, "o", color="black", markersize=5, label="measured")
    axis.set_yticks(places, [NAMES.get(name, name) for name in table.index], fontsize=8)
    axis.set(xlabel="milliseconds a final token", ylim=(len(table) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)


@drawn
def hierarchy_memory(results: Any) -> Figure:
    """Live bytes over plain decoding's, by use and shape; FlashHead's index on top, hollow; dashed: a tenth more."""
    figure = panels(heights.memory(results.frame), "shape", stacks, ("{}", "bytes over plain decoding's"), height=3.8)
    figure.axes[0].legend(fontsize=7, loc="lower left")
    return figure


def stacks(axis: Axes, table: DataFrame) -> None:
    """One stack of uses a method."""
    places, floor = range(len(table)), 0.0 * table["ratio"].to_numpy()
    for shade, use in enumerate(heights.USES):
        axis.bar(places, table[use], bottom=floor, width=0.7, color=f"C{shade}", label=use)
        floor = floor + table[use].to_numpy()
    axis.bar(places, table["index"], bottom=floor, width=0.7, color="white", edgecolor="#666666", label="FlashHead's index")
    for place, ratio in zip(places, table["ratio"], strict=True):
        axis.annotate(f"{ratio:.3f}", (place, ratio), ha="center", va="bottom", fontsize=8)
    axis.axhline(1.1, color="#666666", linestyle="--", linewidth=1)
    names = [NAMES.get(r.method, r.method) + ("" if r.reuse else ", own caches") for r in table.itertuples()]
    axis.set_xticks(list(places), [name.replace(" ", "\n") for name in names], fontsize=7)
    axis.grid(axis="x", visible=False)

"""Figures of hierarchies: exits by depth, schedules, methods against their baselines, and the layers they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashspec.study import heights, screening
from flashspec.study.figures.panels import panels
from flashspec.study.readings import where
from flashspec.study.style import NAMES, canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

CURVES = {"agreement": "same best token", "top_2": "in its 2 best", "top_5": "in its 5 best", "overlap_share": "overlap at T = 1"}

BESIDE: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}


@drawn
def exit_agreement(results: Any) -> Figure:
    """Left: how often a depth's best token is the whole model's or near it, and the laws' overlap; right: loss on the text."""
    table = heights.exits(results.frame)
    rows = table[table["against"] == table["layers"]]
    figure, axes = canvas(2, 3.6)
    for (column, name), shade in zip(CURVES.items(), ("#0072B2", "#56B4E9", "#a6cee3", "#D55E00"), strict=True):
        axes[0].plot(rows["depth"], rows[column], "o-", color=shade, label=name, markersize=4)
    axes[0].set(ylabel="share of positions", ylim=(0, 1))
    axes[1].plot(rows["depth"], rows["mean_loss"], "o-", color="#0072B2", label="exit", markersize=4)
    axes[1].axhline(rows["final_loss"].iloc[0], color="#666666", linestyle="--", linewidth=1, label="whole model")
    axes[1].set_ylabel("loss at the next token, in nats")
    for axis in axes:
        axis.set(xlabel="depth of the exit, in layers", xticks=sorted(rows["depth"]))
        axis.legend(fontsize=8)
    return figure


@drawn
def exit_training(results: Any) -> Figure:
    """Held-out loss of every exit and its overlap with the whole model, by step of training."""
    figure, axes = canvas(2, 3.4)
    for place, (depth, rows) in enumerate(results.frame.groupby("depth")):
        name = "whole model" if depth == rows["layers"].iloc[0] else f"exit {depth}"
        axes[0].plot(rows["step"], rows["loss"], color=f"C{place}", label=name)
        if depth < rows["layers"].iloc[0]:
            axes[1].plot(rows["step"], rows["overlap"], color=f"C{place}", label=name)
    axes[0].set(xlabel="step of training", ylabel="loss on held-out text, in nats")
    axes[1].set(xlabel="step of training", ylabel="overlap at T = 1", ylim=(0, 1))
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


@drawn
def verifier_accuracy(results: Any) -> Figure:
    """Errors of an intermediate verifier: what it keeps and the whole model drops, what it drops and that would have kept."""
    table = heights.exits(results.frame)
    rows = table[table["against"] < table["layers"]]
    figure, axes = canvas(2, 3.6, sharey=True)
    for axis, column, title in zip(axes, ("false_accept", "false_reject"), ("wrongly kept", "wrongly dropped"), strict=True):
        for place, (depth, curve) in enumerate(rows.groupby("depth")):
            axis.plot(curve["against"], curve[column], "o-", label=f"draft exit {depth}", color=f"C{place}", markersize=4)
        axis.set(title=title, xlabel="depth of the verifier, in layers", ylim=(0, 1))
    axes[0].set_ylabel("share of what it kept, of what it dropped")
    axes[0].legend(fontsize=7)
    return figure


@drawn
def hispec_heat(results: Any, quality: Any, temperature: float = 0.0, rule: str = "speculative") -> Figure:
    """Tokens per second of HiSpec by the screening of all schedules: over its exits, and over N_d and N_i, best of the others."""
    frame = where(results.frame, temperature=temperature, rule=rule)
    table = where(screening.foretold(frame, int(quality.frame["layers"].iloc[0])), method="hispec")
    figure, axes = canvas(2, 3.8)
    heat(axes[0], table, "draft_exit", "verify_exit")
    heat(axes[1], table, "n_d", "n_i")
    axes[0].set(xlabel="verify exit", ylabel="draft exit", title=f"exits, T = {temperature:g}")
    axes[1].set(xlabel="$N_i$", ylabel="$N_d$", title="schedule")
    return figure


def heat(axis: Axes, table: DataFrame, row: str, column: str) -> None:
    """The best rate of every cell, written into it."""
    import seaborn

    cells = table.groupby([row, column])["rate"].max().unstack()
    seaborn.heatmap(cells, ax=axis, annot=True, fmt=".0f", annot_kws={"fontsize": 7}, cmap="cividis", cbar=False)
    axis.invert_yaxis()


@drawn
def hierarchy(results: Any, rule: str = "speculative") -> Figure:
    """Tokens per second of every method at its best schedule, one panel a temperature; dots are kinds of prompt."""
    return by_setting(results.frame, rule, bars)[0]


def by_setting(frame: DataFrame, rule: str, draw: Callable[[Axes, DataFrame, dict[str, Any]], None]) -> tuple[Figure, Any]:
    """One panel a temperature, under this rule and greedy, each drawn from the rows of its setting."""
    settings = [(t, r) for t, r in sorted(set(zip(frame["temperature"], frame["rule"], strict=True))) if r == rule or t == 0]
    figure, axes = canvas(len(settings), 3.6, sharey=True)
    for axis, (temperature, used) in zip(axes, settings, strict=True):
        setting = {"temperature": temperature, "rule": used}
        draw(axis, where(frame, **setting), setting)
        axis.set_title(f"T = {temperature:g}, {used}")
    return figure, axes


@drawn
def hierarchy_kinds(results: Any, rule: str = "speculative") -> Figure:
    """Every method at its best schedule over plain decoding, by kind of prompt, one panel a temperature."""
    figure, axes = by_setting(results.frame, rule, kinds_at)
    axes[0].set_ylabel("rate over plain decoding's")
    axes[-1].legend(fontsize=7)
    return figure


def kinds_at(axis: Axes, frame: DataFrame, setting: dict[str, Any]) -> None:
    """One group of marks a kind of prompt, one mark a method."""
    plain = heights.by_kind(frame, "baseline", **setting)
    methods = [name for name in dict.fromkeys(frame["method"]) if name != "baseline"]
    for place, method in enumerate(methods):
        found = heights.by_kind(frame, method, **setting)
        spots = [spot + 0.12 * (place - (len(methods) - 1) / 2) for spot in range(len(plain))]
        gains = [found[kind] / plain[kind] for kind in plain]
        axis.bar(spots, gains, width=0.11, color=colour(method), label=NAMES.get(method, method))
    axis.axhline(1.0, color="#666666", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(plain)), list(plain), fontsize=8)
    axis.grid(axis="x", visible=False)


def bars(axis: Axes, frame: DataFrame, setting: dict[str, Any]) -> None:
    """One bar a method from the top down, with the rate on every kind of prompt."""
    methods = list(dict.fromkeys(frame["method"]))
    for place, method in enumerate(methods):
        rows, kinds = heights.tuned(frame, method, **setting), heights.by_kind(frame, method, **setting)
        sums = rows.groupby("repeat")[["emitted", "seconds"]].sum()
        rate = (sums["emitted"] / sums["seconds"]).median()
        axis.barh(place, rate, color=colour(method), height=0.7)
        axis.plot(list(kinds.values()), [place] * len(kinds), "o", color="black", markersize=3, alpha=0.6)
        axis.annotate(f"{rate:.0f}", (max(rate, *kinds.values()), place), **BESIDE)
    axis.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods], fontsize=8)
    axis.set(xlabel="tokens per second", ylim=(len(methods) - 0.5, -0.5))
    axis.margins(x=0.12)
    axis.grid(axis="y", visible=False)


@drawn
def hispec_flash(results: Any, method: str = "hispec") -> Figure:
    """What FlashHead on the draft exit brings, by exit and the dense head's share there: measured, and foretold two ways."""
    table = heights.flash_gains(results.frame, method)
    settings = sorted(set(zip(table["temperature"], table["rule"], strict=True)))
    figure, axes = canvas(len(settings), 3.6, sharey=True)
    for axis, (temperature, rule) in zip(axes, settings, strict=True):
        flash_at(axis, where(table, temperature=temperature, rule=rule))
        axis.set(title=f"T = {temperature:g}, {rule}", xlabel="draft exit, and its head's share")
    axes[0].set_ylabel("rate over that with the dense head")
    axes[0].legend(fontsize=6)
    return figure


def flash_at(axis: Axes, table: DataFrame) -> None:
    """Three marks for every exit and number of probes."""
    shares = table.groupby("draft_exit")["share"].first()
    for place, (probes, rows) in enumerate(table.groupby("probes")):
        spots = rows["draft_exit"] + 0.2 * place - 0.1
        axis.plot(spots, rows["measured"], "o", color=f"C{place}", label=f"P = {probes}, measured")
        axis.plot(spots, rows["foretold"], "x", color=f"C{place}", label="costs and acceptance")
        axis.plot(spots, rows["by_share"], "^", color=f"C{place}", alpha=0.5, label="head's share alone")
        axis.vlines(spots, rows["measured"], rows["by_share"], color=f"C{place}", linewidth=0.7)
    axis.axhline(1.0, color="#666666", linestyle="--", linewidth=1)
    axis.set_xticks(list(shares.index), [f"{depth}\n{share:.0%}" for depth, share in shares.items()])
    axis.margins(x=0.15)


@drawn
def layer_passes(results: Any) -> Figure:
    """Layer-tokens for each final token, counted (bars) and by the closed form (marks), with and without shared caches."""
    return panels(heights.passes(results.frame), "temperature", passes_at, ("T = {:g}", ""), height=3.4)


def passes_at(axis: Axes, table: DataFrame) -> None:
    """The schedule with the fewest layer-tokens of each method, with reuse and without, from the top down."""
    lines = table.loc[table.groupby(["method", "reuse"])["found"].idxmin()].sort_values(["method", "reuse"])
    for place, row in enumerate(lines.itertuples()):
        fill = colour(row.method) if row.reuse else "white"
        axis.barh(place, row.found, height=0.7, edgecolor=colour(row.method), color=fill)
        axis.plot([row.expected], [place], "|", color="black", markersize=14)
        axis.annotate(f"{row.found:.1f}", (max(row.found, row.expected), place), **BESIDE)
    names = [NAMES.get(r.method, r.method) + ("" if r.reuse else ", recomputed") for r in lines.itertuples()]
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="layer-tokens for each final token", ylim=(len(names) - 0.5, -0.5))
    axis.margins(x=0.12)
    axis.grid(axis="y", visible=False)


@drawn
def nested_prediction(results: Any) -> Figure:
    """Measured tokens per second of every schedule against those that stage costs and acceptance foretell; the band is 5 %."""
    table = heights.predictions(results.frame)
    figure, (axis,) = canvas(height=4.0)
    for method, rows in table.groupby("method"):
        axis.plot(rows["predicted_rate"], rows["measured_rate"], "o", color=colour(str(method)), alpha=0.5, markersize=3,
                  label=NAMES.get(str(method), str(method)))  # fmt: skip
    ends = [0.9 * table["measured_rate"].min(), 1.1 * table["measured_rate"].max()]
    axis.plot(ends, ends, color="#666666", linewidth=1)
    axis.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#666666", alpha=0.15)
    axis.set(xlabel="predicted tokens per second", ylabel="measured tokens per second")
    axis.legend(fontsize=8)
    return figure

"""Figures of exits and hierarchies: how good exits are, speedups over plain decoding, schedules, and where time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import stages
from flashspec.study.compare import DENSE, speedups
from flashspec.study.exits import shares
from flashspec.study.figures.chain import SPENT
from flashspec.study.figures.marks import by_sampling, curves, forest, panelled, stacked
from flashspec.study.style import colour, drawn, named, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

CURVES = {"agreement": "same best token", "top_5": "in the exit's 5 best", "overlap": "overlap at T = 1"}
ERRORS = {"wrongly_accepted": "accepted, but the model rejects it", "wrongly_rejected": "rejected, but the model accepts it"}
LABELS = {
    "draft_exit": "draft exit, in layers", "verify_exit": "verifier's exit, in layers", "k": "$N_d$ (k), tokens",
    "interval": "$N_i$ (interval), tokens",
}  # fmt: skip


def side(table: DataFrame) -> DataFrame:
    """A table by sampling whose lines say method, draft and head; exits were chosen."""
    head = (", " + table["head"].map(named)).mask(table["head"] == "dense", "")
    names = (table["method"].map(named) + " " + table["draft"]).str.strip() + head
    return by_sampling(table.assign(line=names, shade=table["method"].map(colour)))


def place(table: DataFrame) -> DataFrame:
    """A table by sampling whose lines say method, and draft or exits, in the head's colour."""
    where = table["draft"].where(table["draft"] != "", table["exits"].str.replace(" ", "+"))
    names = (table["method"].map(named) + " " + where).str.strip()
    return by_sampling(table.assign(line=names, shade=table["head"].map(colour)))


@drawn
def hierarchy(results: Any) -> Figure:
    """Speedup of every method at its best setting over plain decoding, with 95 % intervals over prompts, a panel a sampling."""
    return forest(side(speedups(results.frame)), "speedup over plain decoding")


@drawn
def combined(results: Any) -> Figure:
    """Speedup over plain decoding of every place that drafts, by head and final token, with 95 % intervals."""
    table = place(speedups(results.frame, ["method", "draft", "exits", "head", "format", "finalize"]))
    late, fast = table["finalize"] == "deferred", ~table["head"].isin(DENSE)
    labels = table["head"] + " head, " + table["finalize"]
    return forest(table.assign(label=labels, hollow=~late, up=0.3 - 0.2 * late - 0.4 * fast), "speedup over plain decoding", 0.45)


@drawn
def head_gains(results: Any) -> Figure:
    """An approximate head over the dense one by place that drafts: measured with intervals, and predicted in two ways."""
    table = stages.head_gains(results.frame)
    late = table["finalize"] == "deferred"
    table = place(table[late] if late.any() else table)
    heads = list(dict.fromkeys(table["head"]))
    labels, up = table["head"] + ", measured", 0.25 * table["head"].map(heads.index).astype(float)
    return forest(table.assign(label=labels, up=up), "speedup over the dense head", 0.36)


@drawn
def token_budget(results: Any) -> Figure:
    """Where the time of a token goes: pieces by their own cost times how many there were (bars), and as it was timed (ticks)."""
    return stacked(side(stages.stages(results.frame).dropna(subset=["predicted"])), SPENT, "ms")


@drawn
def exit_quality(results: Any) -> Figure:
    """Exits of each target: agreement with the whole model, overlap while it was trained, and both errors of a verifier."""
    table, curve = shares(results.frame), results.frame[results.frame["source"] == "training"]
    targets = list(dict.fromkeys(results.frame["target"])) or [""]
    figure = page(5.6 * len(targets))
    for target, (upper, lower) in zip(targets, figure.subplots(2 * len(targets), 2).reshape(-1, 2, 2), strict=True):
        lines = table[table["target"] == target]
        whole, others = (lines[same] for same in (lines["against"] == lines["layers"], lines["against"] < lines["layers"]))
        for column, name in CURVES.items():
            upper[0].plot(whole["depth"], whole[column], "o-", label=name, markersize=4)
        upper[0].set(xlabel="exit, in layers", ylabel="share of positions", title="exit against the whole model")
        of_exits(upper[1], curve[curve["target"] == target], ("step", "overlap"))
        upper[1].set(xlabel="step of training", ylabel="overlap at T = 1, held out", title=f"training of {target}")
        for axis, (error, words) in zip(lower, ERRORS.items(), strict=True):
            of_exits(axis, others, ("against", error))
            axis.set(xlabel="verifier's exit, in layers", ylabel="share", title=words)
    for axis in figure.axes:
        axis.set_ylim(0, 1)
        axis.title.set_fontsize(8)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def of_exits(axis: Axes, lines: DataFrame, across: tuple[str, str]) -> None:
    """A curve for each exit."""
    curves(axis, lines.assign(line="exit " + lines["depth"].astype(str)), across)


@drawn
def schedules(results: Any, method: str = "hispec") -> Figure:
    """Tokens a second of a hierarchy over its exits, and over its bursts, each at the best of the others, on one prompt."""
    table = by_sampling(stages.schedules(results.frame, method).fillna({"verify_exit": 0.0}))
    if table.empty:
        return panelled(table, 1.0)[0]
    parts = list(table.astype({"draft_exit": int, "verify_exit": int}).groupby("panel", sort=False))
    figure = page(2.5 * len(parts) + 0.4)
    for pair, (name, lines) in zip(figure.subplots(len(parts), 2, squeeze=False), parts, strict=True):
        heat(pair[0], lines, "draft_exit", "verify_exit")
        heat(pair[1], lines, "k", "interval")
        pair[0].set_title(f"tokens/s, {name}")
    return figure


def heat(axis: Axes, lines: DataFrame, row: str, column: str) -> None:
    """The best tokens a second over two parameters."""
    import seaborn

    cells = lines.groupby([row, column])["rate"].max().unstack()
    seaborn.heatmap(cells, ax=axis, cmap="cividis", annot=True, fmt=".0f", annot_kws={"fontsize": 7}, cbar=False)
    axis.invert_yaxis()
    axis.set(xlabel=LABELS[column], ylabel=LABELS[row])
    axis.grid(visible=False)

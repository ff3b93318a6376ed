"""Figures of exits and hierarchies: how good exits are, speedups over plain decoding, schedules, and where time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashspec.study import stages
from flashspec.study.compare import contexts, speedups
from flashspec.study.exits import shares
from flashspec.study.style import NAMES, colour, drawn, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

CURVES = {"agreement": "same best token", "top_5": "in the exit's 5 best", "overlap": "overlap at T = 1"}
ERRORS = {"wrongly_accepted": "of what it accepts, rejected by the model", "wrongly_rejected": "of what it rejects, fine for the model"}
SHADES = ("#E69F00", "#009E73", "#0072B2", "#CC79A7", "#d9d9d9")


def by_context(table: DataFrame, draw: Callable[[Axes, DataFrame], None], height: float, across: int = 3) -> Figure:
    """One panel a context, drawn from its lines; a page that says so where the table has none."""
    parts = list(contexts(table))
    rows = max(1, -(-len(parts) // across))
    figure = page(height * rows)
    axes = figure.subplots(rows, max(1, min(across, len(parts))), squeeze=False, sharey=len(parts) > 1)
    for axis, (name, lines) in zip(axes.flat, parts, strict=False):
        draw(axis, lines)
        axis.set_title(name, fontsize=9)
    for axis in list(axes.flat)[len(parts) :]:
        axis.axis("off")
    if not parts:
        axes[0, 0].text(0.5, 0.5, "not in this table", ha="center", transform=axes[0, 0].transAxes)
    return keyed(figure)


def keyed(figure: Figure) -> Figure:
    """A legend of everything labelled, beside the panels."""
    found = {name: mark for axis in figure.axes for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=4, fontsize=8)
    return figure


def forest(axis: Axes, table: DataFrame, key: Callable[[Any], tuple[str, dict[str, Any]]]) -> None:
    """A mark with its interval a line, on a row for each `name`; `key` gives a line's row and its looks; dashed: 1."""
    names = list(dict.fromkeys(key(line)[0] for line in table.itertuples()))[::-1]
    for line in table.itertuples():
        name, looks = key(line)
        error = [[line.ratio - line.low], [line.high - line.ratio]]
        axis.errorbar([line.ratio], [names.index(name) + looks.pop("up", 0.0)], xerr=error, capsize=2, linestyle="", **looks)
    axis.axvline(1.0, color="#666666", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(ylim=(-0.6, len(names) - 0.4), xlabel="speedup over plain decoding")
    axis.grid(axis="y", visible=False)


def who(line: Any) -> str:
    """A line's method, with its draft or exits where the table tells several apart."""
    place = getattr(line, "draft", "") or getattr(line, "exits", "").replace(" ", "+")
    head = "" if line.head == "dense" else f", {NAMES.get(line.head, line.head)}"
    return f"{NAMES.get(line.method, line.method)}{f' {place}' if place else ''}{head}"


@drawn
def hierarchy(results: Any) -> Figure:
    """Speedup of every method at its best setting over plain decoding, with 95 % intervals over prompts, a panel a sampling."""
    table = speedups(results.frame)
    return by_context(table, lambda axis, lines: forest(axis, lines, _method), 0.9 + 0.33 * max(3, table["method"].nunique()))


def _method(line: Any) -> tuple[str, dict[str, Any]]:
    return who(line), {"fmt": "o", "color": colour(line.method), "markersize": 5}


@drawn
def combined(results: Any) -> Figure:
    """Speedup over plain decoding of every place that drafts, by head and final token, with 95 % intervals, a panel a sampling."""
    table = speedups(results.frame, ["method", "draft", "exits", "head", "format", "finalize"])
    places = table.groupby(["method", "draft", "exits"]).ngroups
    return by_context(table, lambda axis, lines: forest(axis, lines, _corner), 1.2 + 0.42 * max(2, places))


def _corner(line: Any) -> tuple[str, dict[str, Any]]:
    late = line.finalize == "deferred"
    looks = {"color": colour(line.head), "markerfacecolor": colour(line.head) if late else "white", "up": 0.12 if late else -0.12}
    return who(line._replace(head="dense")), {"fmt": "o", "markersize": 5, "label": f"{line.head} head, {line.finalize}", **looks}


@drawn
def exit_quality(results: Any) -> Figure:
    """Exits of each target: agreement with the whole model, overlap while it was trained, and both errors of a verifier."""
    table, curve = shares(results.frame), results.frame[results.frame["source"] == "training"]
    targets = list(dict.fromkeys(results.frame["target"])) or [""]
    figure = page(5.6 * len(targets))
    axes = figure.subplots(2 * len(targets), 2, squeeze=False)
    for place, target in enumerate(targets):
        upper, lower = axes[2 * place], axes[2 * place + 1]
        lines = table[table["target"] == target]
        _agreement(upper[0], lines[lines["against"] == lines["layers"]])
        _each(upper[1], curve[curve["target"] == target], ("step", "overlap"))
        upper[1].set(xlabel="step of training", ylabel="overlap at T = 1, held out", title=f"training of {target}", ylim=(0, 1))
        for axis, (error, words) in zip(lower, ERRORS.items(), strict=True):
            _each(axis, lines[lines["against"] < lines["layers"]], ("against", error))
            axis.set(xlabel="verifier's exit, in layers", ylabel="share", title=words, ylim=(0, 1))
    for axis in axes.flat:
        axis.title.set_fontsize(8)
    return figure


def _agreement(axis: Axes, lines: DataFrame) -> None:
    for (column, name), shade in zip(CURVES.items(), SHADES, strict=False):
        axis.plot(lines["depth"], lines[column], "o-", color=shade, label=name, markersize=4)
    axis.set(xlabel="exit, in layers", ylabel="share of positions", title="exit against the whole model", ylim=(0, 1))
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _each(axis: Axes, lines: DataFrame, sides: tuple[str, str]) -> None:
    for place, (depth, mine) in enumerate(lines.groupby("depth")):
        axis.plot(mine[sides[0]], mine[sides[1]], "o-", color=f"C{place}", label=f"exit {depth}", markersize=3)
    if not lines.empty:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


@drawn
def schedules(results: Any, method: str = "hispec") -> Figure:
    """Tokens a second of a hierarchy over its exits, and over its bursts, each at the best of the others, one prompt a schedule."""
    import seaborn

    table = stages.schedules(results.frame, method)
    parts = list(contexts(table))
    figure = page(3.4 * max(1, len(parts)))
    axes = figure.subplots(max(1, len(parts)), 2, squeeze=False)
    for pair, (name, lines) in zip(axes, parts, strict=False):
        for axis, (row, column) in zip(pair, (("draft_exit", "verify_exit"), ("k", "interval")), strict=True):
            cells = lines.fillna(0.0).groupby([row, column])["rate"].max().unstack()
            words = {"annot": True, "fmt": ".0f", "annot_kws": {"fontsize": 7}, "cbar": False}
            seaborn.heatmap(cells, ax=axis, cmap="cividis", **words)
            axis.invert_yaxis()
            axis.set(title=f"tokens/s, {name}", xlabel=LABELS[column], ylabel=LABELS[row])
    return figure


LABELS = {
    "draft_exit": "draft exit, in layers", "verify_exit": "verifier's exit, in layers", "k": "$N_d$ (k), tokens",
    "interval": "$N_i$ (interval), tokens",
}  # fmt: skip


@drawn
def token_budget(results: Any) -> Figure:
    """Where the time of a token goes: pieces by their own cost times how many there were (bars), and as it was timed (dots)."""
    table = stages.stages(results.frame).dropna(subset=list(stages.PARTS))
    return by_context(table, _budget, 0.9 + 0.33 * max(3, table["method"].nunique()))


def _budget(axis: Axes, lines: DataFrame) -> None:
    places, left = range(len(lines)), 0.0 * lines["ms"].to_numpy()
    for part, shade in zip(stages.PARTS, SHADES, strict=True):
        axis.barh(places, lines[part], left=left, height=0.6, color=shade, label=part)
        left = left + lines[part].to_numpy()
    axis.plot(lines["ms"], places, "o", color="black", markersize=4, label="measured whole")
    axis.set_yticks(places, [who(line) for line in lines.drop(columns="exits").itertuples()], fontsize=8)
    axis.set(xlabel="ms a token", ylim=(len(lines) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)


@drawn
def head_gains(results: Any) -> Figure:
    """An approximate head over the dense one by place that drafts: measured with intervals, and predicted in two ways."""
    table = stages.head_gains(results.frame)
    table = table[table["finalize"] == "deferred"] if (table["finalize"] == "deferred").any() else table
    places = table.groupby(["method", "draft", "exits"]).ngroups
    return by_context(table, _head_gains, 1.2 + 0.36 * max(2, places))


def _head_gains(axis: Axes, lines: DataFrame) -> None:
    forest(axis, lines, lambda line: (who(line), {"fmt": "o", "color": colour(line.head), "label": f"{line.head}, measured"}))
    names = list(dict.fromkeys(who(line) for line in lines.itertuples()))[::-1]
    spots = [names.index(who(line)) for line in lines.itertuples()]
    axis.plot(lines["predicted"], spots, "x", color="black", label="predicted from parts and counts")
    axis.plot(lines["by_share"], spots, "|", color="black", markersize=10, label="predicted from the head's share")
    axis.set_xlabel("speedup over the dense head")

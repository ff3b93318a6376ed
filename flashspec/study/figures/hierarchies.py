"""Figures of exits and hierarchies: how good exits are, speedups over plain decoding, schedules, and where time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashspec.study import stages
from flashspec.study.compare import DENSE, contexts, speedups
from flashspec.study.exits import shares
from flashspec.study.style import NAMES, colour, drawn, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

CURVES = {"agreement": "same best token", "top_5": "in the exit's 5 best", "overlap": "overlap at T = 1"}
ERRORS = {"wrongly_accepted": "accepted, but the model rejects it", "wrongly_rejected": "rejected, but the model accepts it"}
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


Key = Callable[[Any], tuple[str, dict[str, Any]]]


def forest(table: DataFrame, key: Key, words: str, each: float = 0.33) -> Figure:
    """A mark with its interval for each line, a panel a context; `key` gives a line's row and looks; dashed: 1."""
    names = list(dict.fromkeys(key(line)[0] for line in table.itertuples()))[::-1]

    def draw(axis: Axes, lines: DataFrame) -> None:
        for line in lines.itertuples():
            name, looks = key(line)
            error = [[line.ratio - line.low], [line.high - line.ratio]]
            spot = names.index(name) + looks.pop("up", 0.0)
            axis.errorbar([line.ratio], [spot], xerr=error, fmt="o", markersize=5, capsize=2, linestyle="", **looks)
            if "predicted" in table:
                axis.plot([line.predicted], [spot], "x", color="black", label="predicted from parts and counts")
                axis.plot([line.by_share], [spot], "|", color="black", markersize=10, label="predicted from the head's share")
        axis.axvline(1.0, color="#666666", linestyle="--", linewidth=1)
        _rows(axis, names, words)

    return by_context(table, draw, 1.0 + each * max(3, len(names)))


def _rows(axis: Axes, names: list[str], words: str) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(ylim=(-0.6, len(names) - 0.4), xlabel=words)
    axis.grid(axis="y", visible=False)


def place(line: Any) -> str:
    """A line's method, and its draft or exits."""
    where = line.draft or getattr(line, "exits", "").replace(" ", "+")
    return f"{NAMES.get(line.method, line.method)}{f' {where}' if where else ''}"


def side(line: Any) -> str:
    """A line's method, draft and head; exits were chosen."""
    head = "" if line.head == "dense" else f", {NAMES.get(line.head, line.head)}"
    return f"{NAMES.get(line.method, line.method)}{f' {line.draft}' if line.draft else ''}{head}"


@drawn
def hierarchy(results: Any) -> Figure:
    """Speedup of every method at its best setting over plain decoding, with 95 % intervals over prompts, a panel a sampling."""
    table = speedups(results.frame)
    return forest(table, lambda line: (side(line), {"color": colour(line.method)}), "speedup over plain decoding")


@drawn
def combined(results: Any) -> Figure:
    """Speedup over plain decoding of every place that drafts, by head and final token, with 95 % intervals."""
    table = speedups(results.frame, ["method", "draft", "exits", "head", "format", "finalize"])

    def corner(line: Any) -> tuple[str, dict[str, Any]]:
        late = line.finalize == "deferred"
        face = {"markerfacecolor": colour(line.head) if late else "white", "label": f"{line.head} head, {line.finalize}"}
        return place(line), {"color": colour(line.head), "up": 0.3 - 0.2 * late - 0.4 * (line.head not in DENSE), **face}

    return forest(table, corner, "speedup over plain decoding", 0.45)


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
    """Tokens a second of a hierarchy over its exits, and over its bursts, each at the best of the others, on one prompt."""
    table = stages.schedules(results.frame, method)
    if table.empty:
        return by_context(table, lambda axis, lines: None, 1.0)
    parts = list(contexts(table.fillna({"verify_exit": 0.0}).astype({"draft_exit": int, "verify_exit": int})))
    figure = page(2.5 * len(parts) + 0.4)
    for pair, (name, lines) in zip(figure.subplots(len(parts), 2, squeeze=False), parts, strict=True):
        _heat(pair[0], lines, "draft_exit", "verify_exit")
        _heat(pair[1], lines, "k", "interval")
        pair[0].set_title(f"tokens/s, {name}")
    return figure


def _heat(axis: Axes, lines: DataFrame, row: str, column: str) -> None:
    import seaborn

    cells = lines.groupby([row, column])["rate"].max().unstack()
    seaborn.heatmap(cells, ax=axis, cmap="cividis", annot=True, fmt=".0f", annot_kws={"fontsize": 7}, cbar=False)
    axis.invert_yaxis()
    axis.set(xlabel=LABELS[column], ylabel=LABELS[row])
    axis.grid(visible=False)


LABELS = {
    "draft_exit": "draft exit, in layers", "verify_exit": "verifier's exit, in layers", "k": "$N_d$ (k), tokens",
    "interval": "$N_i$ (interval), tokens",
}  # fmt: skip


@drawn
def token_budget(results: Any) -> Figure:
    """Where the time of a token goes: pieces by their own cost times how many there were (bars), and as it was timed (dots)."""
    table = stages.stages(results.frame).dropna(subset=list(stages.PARTS))
    names = list(dict.fromkeys(map(side, table.itertuples())))[::-1]

    def draw(axis: Axes, lines: DataFrame) -> None:
        spots, left = [names.index(side(line)) for line in lines.itertuples()], 0.0 * lines["ms"]
        for part, shade in zip(stages.PARTS, SHADES, strict=True):
            axis.barh(spots, lines[part], left=left, height=0.6, color=shade, label=part)
            left = left + lines[part]
        axis.plot(lines["ms"], spots, "o", color="black", markersize=4, label="measured whole")
        _rows(axis, names, "ms a token")

    return by_context(table, draw, 1.0 + 0.33 * max(3, len(names)))


@drawn
def head_gains(results: Any) -> Figure:
    """An approximate head over the dense one by place that drafts: measured with intervals, and predicted in two ways."""
    table = stages.head_gains(results.frame)
    table = table[table["finalize"] == "deferred"] if (table["finalize"] == "deferred").any() else table
    heads = list(dict.fromkeys(table["head"]))

    def key(line: Any) -> tuple[str, dict[str, Any]]:
        looks = {"color": colour(line.head), "label": f"{line.head}, measured"}
        return place(line), {**looks, "up": 0.25 * heads.index(line.head)}

    return forest(table, key, "speedup over the dense head", 0.36)

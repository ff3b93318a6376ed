"""Figures of chapters 6 to 8: drafts beside plain decoding, what a draft is by itself, steps, shapes, and predicted runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import designing, drafting, papers, predictions
from flashspec.study.compare import contexts
from flashspec.study.style import canvas, drawn, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5f6368")
NOTHING = "not in this table"


def _legend(figure: Figure, **options: Any) -> None:
    """A legend beside the panels, where anything bears a label."""
    if any(axis.get_legend_handles_labels()[1] for axis in figure.axes):
        figure.legend(**{"loc": "outside right upper", "fontsize": 8, **options})


@drawn
def draft_race(results: Any) -> Figure:
    """Every draft's best setting over plain decoding with its interval, the fastest on top, a colour a sampling."""
    table = drafting.beside_plain(results.frame)
    several = table["target"].nunique() > 1
    table = table.assign(name=table["draft"] + (" on " + table["target"] if several else ""))
    order = list(table.groupby("name")["ratio"].mean().sort_values().index)
    figure, (axis,) = canvas(height=1.3 + 0.24 * max(4, len(order)))
    for place, (label, lines) in enumerate(contexts(table.assign(target="")) if len(table) else ()):
        spots = [order.index(name) + 0.25 * place for name in lines["name"]]
        bars = [(lines["ratio"] - lines["low"]).fillna(0), (lines["high"] - lines["ratio"]).fillna(0)]
        axis.errorbar(lines["ratio"], spots, xerr=bars, fmt="o", markersize=4, color=SHADES[place % len(SHADES)], label=label)
    axis.axvline(1.0, color="#666666", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(order)), order, fontsize=8)
    axis.set_xlabel("times plain decoding (dashed: 1), 95 % interval" if order else NOTHING)
    _legend(figure)
    return figure


@drawn
def draft_quality(results: Any, family: Any) -> Figure:
    """Perplexity against tokens a check, and tokens a check against tokens a second: one dot a draft, a colour a sampling."""
    table = drafting.merits(results.frame, family.frame)
    figure, axes = canvas(2, 3.4)
    for shade, (label, lines) in zip(SHADES, contexts(table), strict=False):
        for axis, x, y in zip(axes, ("perplexity", "tar"), ("tar", "rate"), strict=True):
            axis.plot(lines[x], lines[y], "o", color=shade, markersize=4, alpha=0.8, label=label if axis is axes[0] else None)
    axes[0].set(xlabel="perplexity of the draft (lower is better)", ylabel="tokens a check")
    axes[1].set(xlabel="tokens a check", ylabel="tokens a second at its best k")
    _legend(figure)
    return figure


@drawn
def draft_steps(results: Any) -> Figure:
    """Milliseconds of a draft step over layers, one line for each set of shapes with equal parameters in their layers."""
    table = designing.steps(results.frame)
    varied = [name for name in designing.SAME if name == "base" or table[name].nunique() > 1]
    figure, (axis,) = canvas(height=3.4)
    for place, (names, rows) in enumerate(table.groupby(varied, sort=False)):
        rows = rows.sort_values("layers")
        axis.plot(rows["layers"], rows["ms"], "o-", color=SHADES[place % len(SHADES)], label=", ".join(map(str, names)))
    axis.set(xlabel="layers" if len(table) else NOTHING, ylabel="milliseconds a step", xscale="log", yscale="log")
    plain_ticks(axis)
    _legend(figure)
    return figure


@drawn
def paper_gain(results: Any) -> Figure:
    """Predicted gain of the paper's wide draft over its deep one by the share of a round that drafting takes."""
    figure, (axis,) = canvas(height=3.0)
    shares = range(101)
    axis.plot(shares, [designing.gain_at(s / 100) for s in shares], color=SHADES[0], label="steps in the paper's ratio")
    headline = papers.YAN["headline"].value
    axis.axhline(headline, color="#000000", linestyle=":", label=f"the paper's headline, {headline:.2f}×")
    axis.axhline(1.0, color="#666666", linewidth=1)
    table = designing.at_papers_shapes(results.frame)
    if len(table):
        gain = table["rate"].iloc[1] / table["rate"].iloc[0]
        axis.plot(100 * table["share"].iloc[0], gain, "s", color=SHADES[1], label="steps and checks timed here")
    axis.set(xlabel="share of the deep draft's round that drafting takes, %", ylabel="wide over deep, predicted")
    _legend(figure)
    return figure


@drawn
def draft_space(results: Any) -> Figure:
    """Predicted tokens a second over depth and size, a panel a sampling; dots: the drafts built; star: the optimum."""
    found = [(rows, space) for _, rows, space in designing.spaces(results.frame) if not isinstance(space, str)]
    figure, axes = canvas(max(1, len(found)), 3.4, sharey=True)
    axes[0].set(xlabel="layers" if found else f"depth and size: {NOTHING}", ylabel="parameters in the layers, millions")
    for axis, (rows, space) in zip(axes, found, strict=False):
        _map(axis, space)
        drafts = rows.drop_duplicates("draft")
        axis.plot(drafts["layers"], drafts["body"] / 1e6, "o", color="white", markeredgecolor="black", markersize=5)
        axis.set(title=next(contexts(rows))[0], xlabel="layers")
    return figure


def _map(axis: Axes, space: designing.Space) -> None:
    surface = [[space.at(depth, body) for depth in space.layers] for body in space.bodies]
    shown = axis.pcolormesh(space.layers, [body / 1e6 for body in space.bodies], surface, cmap="cividis", shading="nearest")
    axis.plot(space.optimum.layers, space.optimum.body / 1e6, "*", color=SHADES[1], markersize=14)
    axis.figure.colorbar(shown, ax=axis, label="predicted tokens a second")


@drawn
def predicted_measured(results: Any) -> Figure:
    """Left: measured against predicted tokens a second, the band 5 % wide. Right: share of runs within an absolute error."""
    table = predictions.predictions(results.frame)
    figure, (left, right) = canvas(2, 3.6)
    rates = table.assign(x=table["emitted"] / table["predicted"], y=table["emitted"] / table["seconds"])
    for shade, (label, rows) in zip(SHADES, contexts(rates), strict=False):
        left.plot(rows["x"], rows["y"], "o", color=shade, alpha=0.5, markersize=3, label=label)
    if len(rates):
        ends = [0.9 * rates["y"].min(), 1.1 * rates["y"].max()]
        left.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#666666", alpha=0.2)
    for style, (column, name) in zip("-:", predictions.KNOWN.items(), strict=True):
        off = sorted(predictions.off_by(table, column).abs())
        shares = [100 * (place + 1) / len(off) for place in range(len(off))]
        right.plot(off, shares, style, color="black", label=f"counts from {name}")
    left.set(xlabel="predicted tokens a second" if len(rates) else NOTHING, ylabel="measured tokens a second")
    right.set(xlabel="absolute error, %", ylabel="share of runs, %", ylim=(0, 101))
    _legend(figure, loc="outside upper center", ncols=5)
    return figure


@drawn
def sweep(results: Any) -> Figure:
    """Times plain decoding against k, a panel a sampling; a colour a draft or method, a line style a head."""
    import seaborn

    table = predictions.curves(results.frame)
    table = table.assign(writer=table["draft"].where(table["draft"] != "", table["method"]))
    groups = list(contexts(table)) or [(NOTHING, table)]
    figure, axes = canvas(len(groups), 3.8, sharey=True)
    orders = {"hue_order": sorted(set(table["writer"])), "style_order": sorted(set(table["head"]))}
    for axis, (label, rows) in zip(axes, groups, strict=True):
        if len(rows):
            seaborn.lineplot(rows, x="k", y="speedup", hue="writer", style="head", ax=axis, legend=axis is axes[0],
                             palette="colorblind", errorbar=None, markers=True, **orders)  # fmt: skip
        axis.axhline(1.0, color="#666666", linestyle="--", linewidth=1)
        axis.set(title=label, xlabel="drafted tokens a check, k", ylabel="times plain decoding")
    handles, labels = axes[0].get_legend_handles_labels()
    if (own := axes[0].get_legend()) is not None:
        own.remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=8)
    return figure

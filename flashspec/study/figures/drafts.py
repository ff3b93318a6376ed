"""Figures of chapters 6 to 8: drafts beside plain decoding, what a draft is by itself, steps, shapes, and predicted runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import designing, drafting, papers, predictions
from flashspec.study.compare import sampled
from flashspec.study.figures.marks import SHADES, by_sampling, canvas, curves, forest, keyed, overlaid, panelled
from flashspec.study.style import drawn, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawn
def draft_race(results: Any) -> Figure:
    """Every draft's best setting over plain decoding with its interval, the fastest on top, a colour a sampling."""
    table = drafting.beside_plain(results.frame)
    several = table["target"].nunique() > 1
    table = table.assign(line=table["draft"] + (" on " + table["target"] if several else ""), target="")
    rank = -table.groupby("line")["ratio"].transform("mean")
    return forest(overlaid(table.assign(rank=rank)), "times plain decoding")


@drawn
def draft_quality(results: Any, family: Any) -> Figure:
    """Perplexity against tokens a check, and tokens a check against tokens a second: one dot a draft, a colour a sampling."""
    table = sampled(drafting.merits(results.frame, family.frame))
    figure, axes = canvas(2, 3.6)
    for axis, pair in zip(axes, (("perplexity", "tar"), ("tar", "rate")), strict=True):
        curves(axis, table.assign(line=table["sampling"]), pair, "o", alpha=0.8)
    axes[0].set(xlabel="perplexity of the draft (lower is better)", ylabel="tokens a check")
    axes[1].set(xlabel="tokens a check", ylabel="tokens a second at its best k")
    return keyed(figure)


@drawn
def draft_steps(results: Any) -> Figure:
    """Milliseconds of a draft step over layers, one line for each set of shapes with equal parameters in their layers."""
    table = designing.steps(results.frame)
    varied = [name for name in designing.SAME if name == "base" or table[name].nunique() > 1]
    names = table[varied].astype(str).agg(", ".join, axis=1) if len(table) else ""
    figure, (axis,) = canvas(height=3.4)
    curves(axis, table.assign(line=names).sort_values("layers", kind="stable"), ("layers", "ms"))
    axis.set(xlabel="layers", ylabel="milliseconds a step", xscale="log", yscale="log")
    plain_ticks(axis)
    return keyed(figure)


@drawn
def paper_gain(results: Any) -> Figure:
    """Predicted gain of the paper's wide draft over its deep one by the share of a round that drafting takes."""
    figure, (axis,) = canvas(height=3.2)
    shares = range(101)
    axis.plot(shares, [designing.gain_at(s / 100) for s in shares], color=SHADES[0], label="steps in the paper's ratio")
    axis.axhline(papers.YAN_HEADLINE, color="#000000", linestyle=":", label=f"the paper's headline, {papers.YAN_HEADLINE:.2f}×")
    axis.axhline(1.0, color="#666666", linewidth=1)
    table = designing.at_papers_shapes(results.frame)
    if len(table):
        gain = table["rate"].iloc[1] / table["rate"].iloc[0]
        axis.plot(100 * table["share"].iloc[0], gain, "s", color=SHADES[1], label="steps and checks timed here")
    axis.set(xlabel="share of the deep draft's round that drafting takes, %", ylabel="wide over deep, predicted")
    return keyed(figure)


@drawn
def draft_space(results: Any) -> Figure:
    """Predicted tokens a second over depth and size, a panel a sampling; dots: the drafts built; star: the optimum."""
    spaces = [(rows, space) for _, rows, space in designing.spaces(results.frame) if not isinstance(space, str)]
    table = by_sampling(drafting.drafted(results.frame)[: None if spaces else 0])
    figure, panels = panelled(table, 3.4, sharey=True)
    for (axis, _), (rows, space) in zip(panels, spaces, strict=False):
        surface = [[space.at(depth, body) for depth in space.layers] for body in space.bodies]
        shown = axis.pcolormesh(space.layers, [body / 1e6 for body in space.bodies], surface, cmap="cividis", shading="nearest")
        figure.colorbar(shown, ax=axis, label="predicted tokens a second")
        axis.plot(space.optimum.layers, space.optimum.body / 1e6, "*", color=SHADES[1], markersize=14)
        drafts = rows.drop_duplicates("draft")
        axis.plot(drafts["layers"], drafts["body"] / 1e6, "o", color="white", markeredgecolor="black", markersize=5)
        axis.set(xlabel="layers", ylabel="parameters in the layers, millions")
    return figure


@drawn
def predicted_measured(results: Any) -> Figure:
    """Left: measured against predicted tokens a second, the band 5 % wide. Right: share of runs within an absolute error."""
    table = sampled(predictions.predictions(results.frame))
    rates = table.assign(line=table["sampling"], **{name: table["emitted"] / table[name] for name in ("predicted", "seconds")})
    figure, (left, right) = canvas(2, 3.6)
    curves(left, rates, ("predicted", "seconds"), "o", alpha=0.5)
    if len(rates):
        ends = [0.9 * rates["seconds"].min(), 1.1 * rates["seconds"].max()]
        left.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#666666", alpha=0.2)
        for style, (column, name) in zip("-:", predictions.KNOWN.items(), strict=True):
            off = predictions.off_by(table, column).abs().astype(float)
            right.ecdf(off, linestyle=style, color="black", label=f"counts from {name}")
    left.set(xlabel="predicted tokens a second", ylabel="measured tokens a second")
    right.set(xlabel="absolute error, %", ylabel="share of runs")
    return keyed(figure)


@drawn
def sweep(results: Any) -> Figure:
    """Times plain decoding against k, a panel a sampling; a colour a draft or method, a line style a head."""
    import seaborn

    table = by_sampling(predictions.curves(results.frame))
    table = table.assign(writer=table["draft"].where(table["draft"] != "", table["method"]))
    orders = {"hue_order": sorted(set(table["writer"])), "style_order": sorted(set(table["head"]))}
    figure, panels = panelled(table, 3.8, sharey=True)
    for axis, rows in panels:
        if len(rows):
            seaborn.lineplot(rows, x="k", y="speedup", hue="writer", style="head", ax=axis, palette="colorblind", errorbar=None,
                             markers=True, **orders)  # fmt: skip
        axis.axhline(1.0, color="#666666", linestyle="--", linewidth=1)
        axis.set(xlabel="drafted tokens a check, k", ylabel="times plain decoding")
    return keyed(figure)

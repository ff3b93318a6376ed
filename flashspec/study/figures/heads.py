"""Figures of draft heads: speedups under verification, what each misses, what each costs, and what depth does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import heads
from flashspec.study.compare import speedups
from flashspec.study.figures.marks import by_sampling, canvas, curves, forest, keyed, panelled, probes_of
from flashspec.study.style import colour, drawn, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawn
def head_speedups(results: Any) -> Figure:
    """Speedup of every head at its best setting over plain decoding, with 95 % intervals, one panel a sampling."""
    table = by_sampling(speedups(results.frame, heads.SIDES))
    names = table["head"] if table["draft"].nunique() < 2 else (table["draft"] + ", " + table["head"]).str.strip(", ")
    return forest(table.assign(line=names, shade=table["head"].map(colour), rank=-table["ratio"]), "speedup over plain decoding")


@drawn
def head_recall(results: Any) -> Figure:
    """Left: agreement with the dense head against megabytes read for one row; right: rows missed by kind of text."""
    import seaborn

    table, kinds = (heads.usual(heads.recalls(results.frame, *by)) for by in ((), ("kind",)))
    several = table["draft"].nunique() > 1
    names = table["draft"] + ", " + table["name"] if several else table["name"]
    table = table.assign(line=names, shade=table["head"].map(colour)).sort_values("megabytes")
    figure, (left, right) = canvas(2, 4.4)
    for calibrated, rows in table.groupby("calibrated"):
        curves(left, rows, ("megabytes", "agreement"), "o:", fillstyle="full" if calibrated else "none")
    left.set(xscale="log", xlabel="megabytes read for one row", ylabel="agrees with the dense head, % of rows")
    plain_ticks(left)
    missed = kinds[kinds["plan"] == "default"]
    shades = {name: "#7a2e00" if "calibrated" in name else colour(name) for name in missed["name"]}
    if len(missed):
        seaborn.barplot(missed, x="kind", y="missed", hue="name", palette=shades, errorbar=None, legend=False, ax=right)
    right.set(yscale="symlog", xlabel="kind of text", ylabel="missed, % of rows (dark: calibrated)", ylim=(0, 100))
    return keyed(figure)


@drawn
def head_cost(results: Any) -> Figure:
    """Milliseconds of one projection against the megabytes it reads, a panel a width; the line is the best bandwidth measured."""
    table = heads.costs(results.frame)
    table = table[table["piece"].isin(["projection", "head"])]
    width = "width " + table["shape"].str.split("x").str[-1]
    table = table.assign(panel=width, line=table["head"], shade=table["head"].map(colour))
    figure, panels = panelled(table, 3.0, across=2, sharex=True, sharey=True)
    for axis, rows in panels:
        curves(axis, rows, ("megabytes", "ms"), "o")
        if len(rows):
            read = rows["megabytes"].agg(["min", "max"])
            axis.plot(read, 1e9 * read / rows["bandwidth"].max(), "-", color="#666666", linewidth=1, label="memory at its best")
            axis.set(xscale="log", yscale="log", xlabel="megabytes read", ylabel="milliseconds")
    return keyed(figure)


@drawn
def head_depth(results: Any) -> Figure:
    """Gain of a draft step against its layers: measured with 95 % intervals, and Amdahl's prediction from the parts."""
    table = heads.depths(results.frame)
    names = table["shape"] + ", " + table["head"] + probes_of(table)
    figure, (axis,) = canvas(height=3.8)
    curves(axis, table.assign(line=names + ", measured"), ("layers", "ratio"), "o")
    curves(axis, table.assign(line=names + ", predicted (Amdahl)"), ("layers", "predicted"), "--")
    ticks = sorted(set(table["layers"].dropna()))
    axis.set(xscale="log", xlabel="layers of the draft", ylabel="draft step, times faster than dense")
    axis.set_xticks(ticks, [f"{layers:g}" for layers in ticks])
    axis.minorticks_off()
    return keyed(figure)

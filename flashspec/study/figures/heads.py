"""Figures of draft heads: speedups under verification, what each misses, what each costs, and what depth does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import heads
from flashspec.study.compare import DENSE, contexts, speedups
from flashspec.study.quote import NOT_HERE
from flashspec.study.style import canvas, colour, drawn, page, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


@drawn
def head_speedups(results: Any) -> Figure:
    """Speedup of every head at its best setting over plain decoding, with 95 % intervals, one panel a sampling."""
    table = speedups(results.frame, heads.SIDES).sort_values("ratio")
    table["line"] = table["head"] if table["draft"].nunique() < 2 else (table["draft"] + ", " + table["head"]).str.strip(", ")
    names, parts = list(dict.fromkeys(table["line"])), list(contexts(table)) or [(NOT_HERE, table)]
    figure, axes = canvas(len(parts), 0.26 * len(names) + 1.5, sharey=True, sharex=True)
    for axis, (name, lines) in zip(axes, parts, strict=True):
        places = [names.index(line) for line in lines["line"]]
        errors = [(lines["ratio"] - lines["low"]).fillna(0), (lines["high"] - lines["ratio"]).fillna(0)]
        axis.errorbar(lines["ratio"], places, xerr=errors, fmt="none", ecolor="#888888", capsize=2)
        for ratio, place, head in zip(lines["ratio"], places, lines["head"], strict=True):
            axis.plot(ratio, place, mark(head), color=colour(head), markeredgecolor="#444444", markersize=6)
        axis.axvline(1, color="#666666", linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    axes[len(axes) // 2].set_xlabel("speedup over plain decoding")
    return figure


def mark(head: str) -> str:
    """Circles for FlashHeads, squares for heads that score every id, triangles for the rest."""
    return "o" if head.startswith("flash") else "s" if head in DENSE else "^"


@drawn
def head_recall(results: Any) -> Figure:
    """Left: agreement with the dense head against megabytes read for one row; right: rows missed by kind of text and plan."""
    table, kinds = (heads.usual(heads.recalls(results.frame, *by)) for by in ((), ("kind",)))
    figure, (left, right) = canvas(2, 4.4)
    for (name, draft), lines in table.sort_values("megabytes").groupby(["name", "draft"], sort=False):
        style: dict[str, Any] = {"color": colour(lines["head"].iloc[0]), "fillstyle": "full" if "calibrated" in name else "none"}
        label = name if table["draft"].nunique() == 1 else f"{draft}, {name}"
        left.plot(lines["megabytes"], lines["agreement"], mark(name) + ":", markersize=6, label=label, **style)
    left.set(xscale="log", xlabel="megabytes read for one row", ylabel="agrees with the dense head, % of rows")
    plain_ticks(left)
    missed = kinds[kinds["plan"] == "default"].pivot_table(index="kind", columns="name", values="missed", sort=False)
    width = 0.8 / max(1, len(missed.columns))
    for place, name in enumerate(missed.columns):
        hatch = "//" if "calibrated" in name else ""
        fill: dict[str, Any] = {"color": colour(name.partition(",")[0]), "hatch": hatch, "edgecolor": "#444444"}
        right.bar([at + place * width for at in range(len(missed))], missed[name], width, linewidth=0.5, **fill)
    right.set_xticks([at + 0.4 - width / 2 for at in range(len(missed))], missed.index)
    right.set(yscale="symlog", xlabel="kind of text", ylabel="missed, % of rows (hatched: calibrated)", ylim=(0, 100))
    if len(table):
        figure.legend(loc="outside upper left", ncols=5, fontsize=8)
    return figure


@drawn
def head_cost(results: Any) -> Figure:
    """Milliseconds of one projection against the megabytes it reads, a panel a width; the line is the best bandwidth measured."""
    table = heads.costs(results.frame)
    table = table[table["piece"].isin(["projection", "head"])].assign(width=table["shape"].str.partition("x")[2])
    widths = list(dict.fromkeys(table["width"])) or [NOT_HERE]
    across = min(2, len(widths))
    figure = page(2.8 * -(-len(widths) // across) + 0.9)
    axes = figure.subplots(-(-len(widths) // across), across, squeeze=False, sharex=True, sharey=True).flat
    for axis, width in zip(axes, widths, strict=False):
        cost_panel(axis, table[table["width"] == width])
        axis.set_title(f"width {width}", fontsize=9)
    marks = {name: mark for axis in figure.axes for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=5, fontsize=8)
    return figure


def cost_panel(axis: Axes, table: DataFrame) -> None:
    """Every head of one width, a mark a shape and size."""
    for head, rows in table.groupby("head", sort=False):
        axis.plot(rows["megabytes"], rows["ms"], mark(str(head)), color=colour(str(head)), markersize=4, label=head)
    read = table["megabytes"].agg(["min", "max"])
    axis.plot(read, 1e9 * read / table["bandwidth"].max(), "-", color="#666666", linewidth=1, label="memory at its best")
    axis.set(xscale="log", yscale="log", xlabel="megabytes read", ylabel="milliseconds")


@drawn
def head_depth(results: Any) -> Figure:
    """Gain of a draft step against its layers: measured with 95 % intervals, and Amdahl's prediction from the parts."""
    figure, (axis,) = canvas(height=3.8)
    table = heads.depths(results.frame)
    for (shape, head, probes), lines in table.groupby(["shape", "head", "probes"], sort=False):
        label = f"{shape}, {head}" + (f", P = {probes}" if probes else "")
        reach = [(lines["value"] - lines["low"]).fillna(0), (lines["high"] - lines["value"]).fillna(0)]
        marks = axis.errorbar(lines["layers"], lines["value"], yerr=reach, fmt="o", capsize=2, label=f"{label}, measured")
        axis.plot(lines["layers"], lines["predicted"], "--", color=marks[0].get_color(), label=f"{label}, predicted (Amdahl)")
    axis.set(xscale="log", xlabel="layers of the draft", ylabel="draft step, times faster than dense")
    ticks = sorted(set(table["layers"].dropna()))
    axis.set_xticks(ticks, [f"{layers:g}" for layers in ticks])
    axis.minorticks_off()
    if len(table):
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    return figure

"""Figures of draft heads: what they miss, what they cost, and what that is worth under verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import head_readings
from flashspec.study.readings import where
from flashspec.study.style import canvas, colour, drawn, page, plain_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

MARKERS = {"dense": "s", "int8": "s", "int4": "s", "flash": "o", "flash_int8": "o", "flash_int4": "o"}


@drawn
def head_recall(results: Any) -> Figure:
    """Agreement against bytes read a row: every head a mark; FlashHead's default clustering, plain and calibrated, a curve."""
    table = head_readings.recalls(results.frame)
    figure, (axis,) = canvas(height=4.2)
    for _, line in table[table["head"] != "flash"].iterrows():
        mark(axis, line["bytes"] / 1e6, line["agreement"], str(line["head"]))
    for calibrated, rows in flash_lines(table, **head_readings.SHIPPED).groupby("calibrated"):
        name = "flash, calibrated" if calibrated else "flash, plain"
        axis.plot(rows["bytes"] / 1e6, rows["agreement"], "o-" if calibrated else "o:", color=colour("flash"), label=name)
    axis.set(xscale="log", xlabel="megabytes read for one row", ylabel="share of rows with the dense head's best id")
    plain_ticks(axis)
    axis.legend(fontsize=7, ncols=2)
    return figure


def flash_lines(table: DataFrame, **setting: Any) -> DataFrame:
    """A FlashHead's lines in order of the rows it scores."""
    return where(table, head="flash", **setting).sort_values("bytes")


def mark(axis: Axes, x: float, y: float, head: str) -> None:
    """One head as a labelled mark."""
    axis.plot(x, y, MARKERS.get(head, "^"), color=colour(head), label=head)


@drawn
def head_clusters(results: Any) -> Figure:
    """Agreement against the cluster size, plain and calibrated heads: at the default probes, and at the largest share of rows."""
    table = where(head_readings.recalls(results.frame), head="flash")
    shares = sorted(set(table["plan"]) - {"default"}, key=float)
    plans = {"default": "one cluster in sixteen", **{share: f"at most {share} of the rows" for share in shares[-1:]}}
    figure = page(3.0 * len(plans) + 0.5)
    axes = figure.subplots(len(plans), 2, sharey=True, sharex=True, squeeze=False)
    for line, (plan, name) in zip(axes, plans.items(), strict=True):
        for axis, calibrated in zip(line, (False, True), strict=True):
            cluster_panel(axis, table[(table["plan"] == plan) & (table["calibrated"] == calibrated)])
            axis.set_title(f"{name}, {'calibrated' if calibrated else 'plain'}", fontsize=9)
        line[0].set_ylabel("share of rows that agree")
    for axis in axes[-1]:
        axis.set_xlabel("ids a cluster")
    axes[0, 0].legend(fontsize=7)
    return figure


def cluster_panel(axis: Axes, table: DataFrame) -> None:
    """Agreement by cluster size, a curve a metric and number of homes."""
    for (metric, homes), rows in table.groupby(["metric", "homes"]):
        style = "o-" if homes == 1 else "^:"
        axis.plot(rows["cluster_size"], rows["agreement"], style, color=colour(metric), label=f"{metric}, homes = {homes}")
    sizes = sorted(table["cluster_size"].unique())
    axis.set(xscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()


BANDED = {"head": "flash", "plan": "default", **head_readings.SHIPPED}


def by_band(axis: Axes, frame: DataFrame, shift: float) -> Iterator[tuple[str, str, DataFrame, list[float]]]:
    """The plain and the calibrated FlashHead by band of frequency: name, fill, its table, and where its marks stand."""
    axis.set_xlabel("frequency rank of the wanted id in the calibration texts")
    for calibrated, name, aside in ((False, "plain", -shift), (True, "calibrated", shift)):
        table = head_readings.bands(frame, calibrated=calibrated, **BANDED)
        axis.set_xticks(range(len(table)), table["band"])
        yield name, colour("flash") if calibrated else "white", table, [place + aside for place in range(len(table))]


@drawn
def head_bands(results: Any) -> Figure:
    """Misses at the default probes by the frequency of the wanted id, plain and calibrated, FlashHead's default clustering."""
    figure, (axis,) = canvas(height=3.4)
    for name, fill, table, places in by_band(axis, results.frame, 0.2):
        axis.bar(places, 100 * (1 - table["agreement"]), 0.38, color=fill, edgecolor=colour("flash"), label=name)
    axis.set_ylabel("missed, % of the band's rows")
    axis.legend()
    return figure


@drawn
def head_required(results: Any) -> Figure:
    """Probes that 50, 90 and 99 % of the rows need, by the frequency of the wanted id, FlashHead's default clustering."""
    figure, (axis,) = canvas(height=3.4)
    for name, fill, table, places in by_band(axis, results.frame, 0.1):
        for percent, marker in zip(head_readings.PERCENTILES, ("v", "o", "^"), strict=True):
            label, needed = f"{percent} % of the rows, {name}", table[f"required_{percent}"].clip(lower=1)
            axis.plot(places, needed, marker, color=colour("flash"), markerfacecolor=fill, label=label)
    probes = where(results.frame, **BANDED)["probes"].max()
    axis.axhline(probes, color="#666666", linestyle=":", label="the default probes")
    axis.set(yscale="log", ylabel="probes needed")
    axis.set_yticks([4**power for power in range(6)], [str(4**power) for power in range(6)])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    return figure


@drawn
def head_cost(results: Any) -> Figure:
    """Milliseconds of one projection against the megabytes it reads, one panel a width; the line is the memory's own limit."""
    table = head_readings.costs(results.frame)
    widths = sorted(table["hidden"].unique())
    columns = min(2, len(widths))
    figure = page(3.0 * -(-len(widths) // columns) + 0.8)
    axes = figure.subplots(-(-len(widths) // columns), columns, squeeze=False)
    for axis, width in zip(axes.flat, widths, strict=False):
        cost_panel(axis, where(table, hidden=width))
        axis.set_title(f"width {width}")
    for axis in axes.flat[len(widths) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=7)
    return figure


@drawn
def head_build(results: Any) -> Figure:
    """Minutes of every build, a bar a head, its parts one above the other; the dotted line is ten minutes."""
    table = head_readings.builds(results.frame)
    figure, (axis,) = canvas(height=3.8)
    bottom = [0.0] * len(table)
    for part, fill in zip(head_readings.PARTS, ("flash", "dense", "baseline"), strict=True):
        minutes = table[f"{part}_seconds"] / 60
        axis.bar(range(len(table)), minutes, bottom=bottom, color=colour(fill), label=part)
        bottom = [below + more for below, more in zip(bottom, minutes, strict=True)]
    axis.axhline(10, color="#666666", linestyle=":")
    labels = [f"{line.vocab} x {line.hidden}, {line.cluster_size}" for line in table.itertuples()]
    axis.set_xticks(range(len(table)), labels, rotation=40, ha="right", fontsize=7)
    axis.set(ylabel="minutes", xlabel="ids x width, ids a cluster")
    axis.legend()
    return figure


def cost_panel(axis: Axes, table: DataFrame) -> None:
    """Every head of one width, a mark a vocabulary and size."""
    for head, rows in table.groupby("head"):
        axis.plot(rows["bytes"] / 1e6, rows["seconds"] * 1e3, MARKERS.get(str(head), "^"), color=colour(str(head)),
                  markersize=4, label=head)  # fmt: skip
    ordered = table.sort_values("bytes")
    axis.plot(ordered["bytes"] / 1e6, ordered["floor"] * 1e3, "-", color="#666666", linewidth=1, label="memory limit")
    axis.set(xscale="log", yscale="log", xlabel="megabytes read", ylabel="milliseconds")


@drawn
def head_tar(results: Any) -> Figure:
    """Tokens per second against tokens a check: every head, probes and shortlist, one panel a temperature."""
    table = head_readings.writers(results.frame)
    temperatures = sorted(table["temperature"].unique())
    figure, axes = canvas(len(temperatures), 4.0, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        for head, rows in where(table, temperature=temperature).groupby("head"):
            if head == "baseline":
                axis.axhline(rows["throughput"].median(), color=colour("baseline"), linestyle="--", label="plain decoding")
                continue
            ordered = rows.sort_values(["probes", "shortlist"])
            axis.plot(ordered["tar"], ordered["throughput"], MARKERS.get(str(head), "^") + ":", color=colour(str(head)),
                      markersize=4, linewidth=0.8, label=head)  # fmt: skip
        axis.set(title=f"T = {temperature:g}", xlabel="tokens a check")
    axes[0].set_ylabel("tokens per second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=7)
    return figure


@drawn
def head_choice(results: Any, head: str = "flash") -> Figure:
    """A FlashHead's tokens per second and agreement against its probes, one panel a temperature; a ring marks the fastest."""
    table = where(head_readings.writers(results.frame), head=head)
    temperatures = sorted(table["temperature"].unique())
    figure, axes = canvas(len(temperatures), 3.4)
    for axis, temperature in zip(axes, temperatures, strict=True):
        rows = where(table, temperature=temperature).sort_values("probes")
        best = rows.loc[rows["throughput"].idxmax()]
        axis.plot(rows["probes"], rows["throughput"], "o-", color=colour(head), label="tokens per second")
        axis.plot(best["probes"], best["throughput"], "o", markersize=11, markerfacecolor="none", color="black")
        other = axis.twinx()
        other.plot(rows["probes"], rows["agreement"], "s:", color=colour("baseline"))
        other.set_ylim(min(0.9, rows["agreement"].min()), 1)
        axis.set(title=f"T = {temperature:g}", xscale="log", xlabel="clusters probed, P")
        axis.set_xticks(rows["probes"], [str(count) for count in rows["probes"]])
        axis.minorticks_off()
    axes[0].set_ylabel("tokens per second (solid)")
    figure.supylabel("agreement (dotted)", x=1.0, fontsize=9)
    return figure


@drawn
def depth_times_head(results: Any) -> Figure:
    """Gain of a draft step against its layers: measured with 95 % intervals, and Amdahl's prediction from the parts."""
    table = head_readings.depth_gains(results.frame)
    figure, (axis,) = canvas(height=3.6)
    axis.plot(table["layers"], table["predicted"], "--", color=colour("baseline"), label="Amdahl's law, from the parts")
    reach = [table["measured"] - table["low"], table["high"] - table["measured"]]
    lengths = [side.fillna(0).clip(lower=0) for side in reach]
    axis.errorbar(table["layers"], table["measured"], yerr=lengths, fmt="o", color=colour("flash"), capsize=2, label="measured")
    axis.set(xscale="log", xlabel="layers of the draft", ylabel="draft step, times faster than with the dense head")
    axis.set_xticks(table["layers"], [str(layers) for layers in table["layers"]])
    axis.minorticks_off()
    axis.legend()
    return figure

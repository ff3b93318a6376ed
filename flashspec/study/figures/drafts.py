"""Figures of the draft study: depth against width, quality against acceptance, the family's race, and the model beside it."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from flashspec.study import foretold, latency, merits, planned, winners
from flashspec.study.figures.panels import panels
from flashspec.study.readings import Missing, where
from flashspec.study.style import canvas, drawn, plain_ticks
from flashspec.theory.designs import predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

RUNS = ("one kind of prompt a run", "all kinds")
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5f6368")


@drawn
def draft_latency(results: Any) -> Figure:
    """Milliseconds of a draft step over layers, one line a group of shapes; dashed: what memory alone would take."""
    table = latency.steps(results.frame)
    figure, (axis,) = canvas(height=3.8)
    for shade, (group, rows) in zip(SHADES, table.groupby("group", sort=False), strict=False):
        rows = rows.sort_values("layers")
        axis.plot(rows["layers"], rows["ms"], "o-", color=shade, label=group)
        axis.plot(rows["layers"], rows["floor_ms"], "--", color=shade, alpha=0.5, linewidth=1)
    axis.set(xlabel="layers (same body parameters within a line, but for the paper's drafts)", ylabel="milliseconds a step")
    axis.set(xscale="log", yscale="log")
    plain_ticks(axis)
    axis.legend(fontsize=8)
    return figure


@drawn
def paper_gain(results: Any) -> Figure:
    """Gain of the paper's wide draft over its deep one by the share of a round that drafting takes: predicted."""
    figure, (axis,) = canvas(height=3.4)
    shares = [percent / 100 for percent in range(101)]
    axis.plot(
        [100 * s for s in shares], [latency.gain_at(s) for s in shares], color=SHADES[0], label="steps in the paper's ratio"
    )
    wanted = latency.papers.YAN["headline"].value
    axis.axhline(wanted, color="#000000", linestyle=":", label=f"the paper's headline, {wanted:.2f}")
    axis.axhline(1.0, color="#666666", linewidth=1)
    try:
        here = 100 * latency.draft_share(results.frame, latency.papers.YAN_DEEP)
        axis.plot(here, latency.gain_here(results.frame), "s", color=SHADES[1], label="steps and checks measured here")
    except Missing:
        axis.set_title("the table has no steps of the paper's drafts")
    axis.set(xlabel="share of the deep draft's round that drafting takes, %", ylabel="predicted gain of the wide draft")
    axis.legend(fontsize=8)
    return figure


@drawn
def draft_quality(results: Any, temperature: float = 1.0) -> Figure:
    """TAR of every draft against its perplexity, its best tokens and its choices on held-out text; one dot a draft."""
    table = merits.merits(results.frame, temperature)
    figure, axes = canvas(len(merits.BY_ITSELF), 3.6, sharey=True)
    for axis, (column, label) in zip(axes, merits.BY_ITSELF.items(), strict=True):
        dots = axis.scatter(table[column], table["tar"], c=table["layers"], cmap="cividis", s=28)
        label_dots(axis, table, column, "tar")
        axis.set_xlabel(label)
    axes[0].set_ylabel("TAR, tokens a check")
    figure.colorbar(dots, ax=axes, label="layers")
    return figure


def label_dots(axis: Axes, table: DataFrame, x: str, y: str) -> None:
    """The name of every draft beside its dot."""
    for name, row in table.iterrows():
        axis.annotate(str(name), (row[x], row[y]), fontsize=6, xytext=(3, 2), textcoords="offset points")


@drawn
def draft_family(results: Any, temperature: float = 1.0) -> Figure:
    """Tokens per second of every draft at its best k, the fastest on top; dots are repeats, the line is plain decoding."""
    frame = results.frame
    table = winners.best(frame, temperature).iloc[::-1]
    figure, (axis,) = canvas(height=1.2 + 0.25 * len(table))
    for place, (name, row) in enumerate(table.iterrows()):
        paces = winners.pace(winners.rows_at_best(frame, str(name), temperature))
        axis.barh(place, row["rate"], color=SHADES[0], alpha=0.7, height=0.65)
        axis.plot(paces, [place] * len(paces), "o", color="black", markersize=2)
    axis.axvline(winners.pace(where(frame, method="baseline", temperature=temperature)).median(), color="#5f6368", linestyle="--")
    axis.set_yticks(
        range(len(table)), [f"{n}: {r.layers} layers, k = {r.k}" for n, r in zip(table.index, table.itertuples(), strict=True)]
    )
    axis.set_xlabel(f"tokens per second at T = {temperature:g} (dashed: plain decoding)")
    return figure


@drawn
def draft_lengths(results: Any, counts: Any, temperature: float = 1.0) -> Figure:
    """Percent of tokens per second that the recommended k loses to the fastest one, one bar a draft; dashed: 3 %."""
    parts = foretold.parts_of(results, temperature=temperature)
    found = planned.planned(results.frame, parts, counts.frame, temperature)
    figure, (axis,) = canvas(height=1.2 + 0.25 * len(found))
    axis.barh(range(len(found)), [one.loss for one in found], color=SHADES[0], alpha=0.7, height=0.65)
    labels = [f"{one.draft}: k = {one.recommended}, fastest {one.fastest}" for one in found]
    axis.set_yticks(range(len(found)), labels)
    axis.axvline(planned.LOSS, color="#5f6368", linestyle="--")
    axis.set_xlabel(f"loss of the recommended k at T = {temperature:g}, %")
    return figure


@drawn
def draft_space(results: Any, counts: Any, temperature: float = 1.0) -> Figure:
    """Predicted throughput over depth and body parameters from fitted relations; dots: the drafts built; star: the optimum."""
    figure, (axis,) = canvas(height=3.8)
    try:
        found = winners.space(results.frame, foretold.parts_of(results, temperature=temperature), counts.frame, temperature)
        space_at(axis, found)
    except (Missing, ValueError) as error:
        axis.set_title(str(error), fontsize=8)
        return figure
    drafts = results.frame[results.frame["draft"].isin(found.drafts)].drop_duplicates("draft").set_index("draft")
    drafts = drafts.assign(millions=drafts["body"] / 1e6)
    axis.plot(drafts["layers"], drafts["millions"], "o", color="white", markeredgecolor="black")
    label_dots(axis, drafts, "layers", "millions")
    return figure


def space_at(axis: Axes, found: winners.Space) -> None:
    """The surface at the best block of every place, and its highest point."""
    surface = [
        [predicted(found.draft, found.acceptance, found.check, (depth, body)).throughput for depth in found.layers]
        for body in found.bodies
    ]
    millions = [body / 1e6 for body in found.bodies]
    shown = axis.pcolormesh(found.layers, millions, surface, cmap="cividis", shading="nearest")
    axis.plot(found.optimum.layers, found.optimum.body / 1e6, "*", color="#D55E00", markersize=14)
    axis.figure.colorbar(shown, ax=axis, label="predicted tokens per second")
    axis.set(xlabel="layers", ylabel="body parameters, millions")


@drawn
def predicted_measured(results: Any, counts: Any) -> Figure:
    """Measured tokens per second of every run against the prediction, by kind of prompt and over all; the band is 5 %."""
    table = foretold.predictions(results.frame, foretold.parts_of(results), counts.frame)
    figure, axes = canvas(2, 4.0, sharex=True, sharey=True)
    for axis, rows, title in zip(axes, (table, foretold.over_kinds(table)), RUNS, strict=True):
        rates = rows.assign(x=rows["emitted"] / rows["predicted"], y=rows["emitted"] / rows["seconds"])
        for shade, (temperature, dots) in zip(SHADES, rates.groupby("temperature"), strict=False):
            axis.plot(dots["x"], dots["y"], "o", color=shade, alpha=0.5, markersize=3, label=f"T = {temperature:g}")
        ends = [0.9 * rates["y"].min(), 1.1 * rates["y"].max()]
        axis.plot(ends, ends, color="#666666", linewidth=1)
        axis.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#666666", alpha=0.15)
        axis.set(title=title, xlabel="predicted tokens per second")
    axes[0].set_ylabel("measured tokens per second")
    axes[0].legend(fontsize=8)
    return figure


@drawn
def prediction_errors(results: Any, counts: Any) -> Figure:
    """Share of the runs whose absolute error is at most so many percent, by kind of prompt and over all kinds."""
    table = foretold.predictions(results.frame, foretold.parts_of(results), counts.frame)
    figure, (axis,) = canvas(height=3.4)
    for shade, rows, name in zip(SHADES, (table, foretold.over_kinds(table)), RUNS, strict=False):
        found = sorted(100 * foretold.errors(rows).abs())
        axis.step(found, [100 * (i + 1) / len(found) for i in range(len(found))], where="post", color=shade, label=name)
    for percent in (foretold.MEDIAN, foretold.MOST):
        axis.axvline(percent, color="#666666", linestyle=":", linewidth=1)
    axis.set(xlabel="absolute error, %", ylabel="share of runs, %", ylim=(0, 100))
    axis.legend(fontsize=8)
    return figure


@drawn
def sweep(results: Any) -> Figure:
    """Speedup over plain decoding against k, kinds summed, one panel a temperature; a colour a draft, a line style a head."""
    words = ("T = {:g}", "times plain decoding")
    figure = panels(winners.rates(results.frame), "temperature", sweep_at, words, height=4.0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=7, handlelength=3)
    return figure


def sweep_at(axis: Axes, table: DataFrame) -> None:
    """One colour a draft, one line style a head; dashed and thin: plain decoding."""
    plain = where(table, method="baseline").set_index("draft")["rate"]
    runs = table[table["k"] > 0]
    shades = dict(zip(runs["draft"].unique(), cycle(SHADES), strict=False))
    styles = dict(zip(runs["method"].unique(), cycle(("-", "--", ":", "-.")), strict=False))
    for (draft, method), line in runs.groupby(["draft", "method"]):
        look = {"color": shades[draft], "linestyle": styles[method], "label": f"{draft}, {method}"}
        axis.plot(line["k"], line["rate"] / plain[draft], marker="o", markersize=3, **look)
    axis.axhline(1.0, color="#666666", linestyle="--", linewidth=1)
    axis.set_xlabel("drafted tokens a check, k")


@drawn
def generalises(results: Any, temperature: float = 1.0) -> Figure:
    """TAR and speedup of every draft at its best k, one bar a target, home first."""
    frame = results.frame
    names = merits.targets(frame)
    drafts = list(winners.best(merits.on_target(frame, names[0]), temperature).index)
    figure, axes = canvas(2, 3.4)
    for axis, column, label in zip(axes, ("tar", "speedup"), ("TAR, tokens a check", "times plain decoding"), strict=True):
        for number, (shade, target) in enumerate(zip(SHADES, names, strict=False)):
            heights = [merits.kept(frame, draft, temperature)[target][column] for draft in drafts]
            places = [place + (number - (len(names) - 1) / 2) * 0.8 / len(names) for place in range(len(drafts))]
            axis.bar(places, heights, width=0.8 / len(names), color=shade, label=target)
        axis.set_xticks(range(len(drafts)), drafts, fontsize=8)
        axis.set_ylabel(label)
    axes[1].axhline(1.0, color="#666666", linestyle="--", linewidth=1)
    axes[0].margins(y=0.25)
    axes[0].legend(fontsize=7, loc="upper right")
    return figure


@drawn
def papers_table(results: Any) -> Figure:
    """Computed over printed number, less 1, for every number of the papers that the model gives."""
    frame = results.frame
    figure, (axis,) = canvas(height=0.8 + 0.3 * len(frame))
    for place, row in enumerate(frame.itertuples()):
        off = 100 * (row.computed / row.published - 1)
        axis.barh(place, off, color=SHADES[0] if row.work == "decoding" else SHADES[1], height=0.6)
    axis.set_yticks(range(len(frame)), frame["what"], fontsize=8)
    axis.axvline(0, color="#666666", linewidth=1)
    axis.set_xlabel("computed over printed, less 1, in percent")
    return figure

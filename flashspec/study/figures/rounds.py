"""Figures of the inside of a round: where its time goes, what a check of n rows costs, and another engine beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import chain
from flashspec.study.figures.chain import line_name
from flashspec.study.style import NAMES, canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = dict(zip(chain.PARTS, ("#d9d9d9", "#5f6368", "#0072B2", "#D55E00", "#CC79A7", "#F0E442"), strict=True))


@drawn
def ledger(results: Any) -> Figure:
    """Milliseconds a token by part as timed alone, stacked; the black tick is what the whole run took."""
    table = chain.inside(results.frame)
    samplings = sorted(set(table["sampling"])) or [""]
    names = list(dict.fromkeys(line_name(row) for _, row in table.iterrows()))
    figure, axes = canvas(len(samplings), 0.26 * len(names) + 2.0, sharey=True)
    for axis, sampling in zip(axes, samplings, strict=True):
        rows = table[table["sampling"] == sampling]
        places, left = [-names.index(line_name(row)) for _, row in rows.iterrows()], 0.0 * rows["measured"]
        for part in chain.PARTS:
            axis.barh(places, rows[part], left=left, color=COLOURS[part], height=0.65, label=part)
            left = left + rows[part]
        axis.plot(rows["measured"], places, "|", color="black", markersize=11, label="measured")
        axis.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        axis.set_title(sampling, fontsize=9)
        axis.grid(axis="y", visible=False)
    axes[len(axes) // 2].set_xlabel("milliseconds a token")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center", fontsize=8)
    return figure


@drawn
def formats(pieces: Any) -> Figure:
    """A check of n rows in each weight format, in milliseconds and relative to a check of one row."""
    table = chain.checks(pieces.frame)
    figure, (left, right) = canvas(2, 3.5)
    for (shape, form), rows in table.groupby(["shape", "format"]):
        name = f"{NAMES.get(shape, shape)}, {form}"
        left.plot(rows["rows"], rows["ms"], "o-", color=colour(form), label=name, markersize=4)
        right.plot(rows["rows"], rows["ratio"], "o-", color=colour(form), markersize=4)
    left.set(xlabel="rows read at once", ylabel="milliseconds", ylim=(0, None), title="a check")
    right.set(xlabel="rows read at once", ylabel="times one row", ylim=(0, None), title="relative to one row")
    if len(table):
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


@drawn
def peers(results: Any) -> Figure:
    """Greedy tokens a second of each engine with the same models at its best k; bars are means over prompts, dots prompts."""
    import seaborn

    table = chain.engine_rates(results.frame)
    formats = sorted(set(table["dtype"]))
    figure, axes = canvas(len(formats), 3.2, sharey=True)
    for axis, dtype in zip(axes, formats, strict=True):
        rows = table[table["dtype"] == dtype]
        shared: dict[str, Any] = {"data": rows, "x": "mode", "y": "rate", "hue": "engine", "ax": axis, "legend": False}
        palette = {name: colour(name) for name in set(rows["engine"])}
        seaborn.barplot(**shared, palette=palette, errorbar=None)
        seaborn.stripplot(**shared, palette=dict.fromkeys(palette, "black"), dodge=True, size=3, jitter=False)
        axis.set(title=f"{dtype}, greedy", xlabel="", ylabel="tokens a second")
    seen = [axes[0].bar([0], [0], color=colour(name), label=name) for name in sorted(set(table["engine"]))]
    figure.legend(handles=seen, loc="outside upper center", ncols=2, fontsize=8)
    return figure

"""Figures of the chain: FlashHead's gain from the projection to the text, and what a final token costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import chain, papers
from flashspec.study.quote import NOT_HERE
from flashspec.study.style import NAMES, canvas, colour, drawn, plain_ticks, stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LINES = ("-", ":", "--", "-.")


@drawn
def waterfall(results: Any, pieces: Any) -> Figure:
    """FlashHead over the dense head of the same format at every stage: the thesis beside what was measured here."""
    figure, (axis,) = canvas(height=4.4)
    chained = chain.chain(results.frame, pieces.frame)
    thesis = [papers.thesis(name) for name in ("projection", "draft_step", "eager", "deferred")]
    axis.plot(range(len(thesis)), thesis, "s-", color=colour("thesis"), label="the thesis")
    samplings = sorted(set(chained["sampling"]) - {""})
    names = sorted(set(chained["name"]))
    for place, name in enumerate(names):
        mine, shift = chained[chained["name"] == name], 0.08 * (place + 1 - len(names) / 2)
        for number, sampling in enumerate(samplings or [""]):
            rows = mine[mine["sampling"].isin(["", sampling])].drop_duplicates("stage")
            if number == 0 or (mine["sampling"] == sampling).any():
                label = f"{NAMES.get(name, name)}, {sampling}" if (mine["sampling"] != "").any() else NAMES.get(name, name)
                style = {"color": colour(name), "linestyle": LINES[number % 4], "label": label}
                cascade(axis, rows, shift + 0.02 * number, style)
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set_xticks(range(len(chain.STAGES)), [stage.replace(", ", ",\n") for stage in chain.STAGES])
    axis.set(yscale="log", ylabel="FlashHead over dense, times faster", xlim=(-0.4, len(chain.STAGES) - 0.6))
    plain_ticks(axis)
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def cascade(axis: Axes, rows: DataFrame, shift: float, style: dict[str, Any]) -> None:
    """One line of the waterfall, its points with their intervals."""
    rows = rows.assign(at=rows["stage"].map(chain.STAGES.index)).sort_values("at")
    errors = [(rows["ratio"] - rows["low"]).fillna(0), (rows["high"] - rows["ratio"]).fillna(0)]
    axis.errorbar(rows["at"] + shift, rows["ratio"], yerr=errors, marker="o", markersize=4, capsize=2, alpha=0.85, **style)


@drawn
def draft_step(pieces: Any) -> Figure:
    """A whole draft step split into body and head, for each shape and head, in milliseconds."""
    table = pieces.frame.groupby(["shape", "head", "format", "probes", "piece"])["seconds"].median().mul(1e3).unstack("piece")
    shapes = list(dict.fromkeys(pieces.frame["shape"]))
    figure, axes = stack([int((table.index.get_level_values("shape") == shape).sum()) for shape in shapes])
    for axis, shape in zip(axes, shapes, strict=True):
        rows = table.loc[shape].iloc[::-1].reindex(columns=["body", "head", "step"])
        body = rows["body"].fillna(rows["body"].max())
        axis.barh(range(len(rows)), body, color="#bdbdbd", height=0.6)
        axis.barh(range(len(rows)), rows["head"], left=body, color=[colour(head) for head, *_ in rows.index], height=0.6)
        axis.plot(rows["step"], range(len(rows)), "|", color="black", markersize=12)
        labels = [f"{head}, {form}" + (f", P = {probes}" if probes else "") for head, form, probes in rows.index]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.set(title=NAMES.get(shape, shape), xlabel="milliseconds (grey: body, colour: head, tick: the whole step)")
        axis.grid(axis="y", visible=False)
    return figure


@drawn
def throughput(results: Any) -> Figure:
    """Speedup over plain decoding of every draft, head and way to finalise at its best setting, one panel a sampling."""
    return forests(chain.rates(results.frame).dropna(subset="ratio"), "times plain decoding")


@drawn
def final_token(results: Any) -> Figure:
    """Deferred over eager final token, measured with its interval and predicted from parts, one panel a sampling."""
    return forests(chain.deferral(results.frame), "deferred over eager")


def forests(table: DataFrame, words: str) -> Figure:
    """One panel a sampling: a labelled point with its interval for every line, a hollow diamond where something is predicted."""
    samplings = sorted(set(table["sampling"])) or [NOT_HERE]
    lines = [line_name(row) for _, row in table.iterrows()]
    names = list(dict.fromkeys(lines))
    figure, axes = canvas(len(samplings), 0.24 * len(names) + 1.6, sharey=True)
    for axis, sampling in zip(axes, samplings, strict=True):
        rows = table[table["sampling"] == sampling]
        places = [-names.index(line_name(row)) for _, row in rows.iterrows()]
        errors = [(rows["ratio"] - rows["low"]).fillna(0), (rows["high"] - rows["ratio"]).fillna(0)]
        axis.errorbar(rows["ratio"], places, xerr=errors, fmt="none", ecolor="#888888", capsize=2)
        axis.scatter(rows["ratio"], places, c=[colour(head) for head in rows["head"]], s=22, zorder=3)
        if "predicted" in rows:
            axis.scatter(rows["predicted"], places, marker="D", s=22, facecolors="none", edgecolors="black", zorder=4)
        axis.axvline(1, color="#666666", linewidth=1)
        axis.set_title(sampling, fontsize=9)
        axis.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        axis.set_xlabel(words)
    return figure


def line_name(row: Any) -> str:
    """Who a line is about."""
    who = NAMES.get(row["draft"], row["draft"]) or row["method"]
    return f"{who}, {row['head']}" + (f", {row['finalize']}" if "predicted" not in row else "")

"""Figures of the inside of a round: where its time goes, what a check costs in each weight format, and peers beside us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import readings
from flashspec.study.figures.panels import panels
from flashspec.study.style import NAMES, PARTS, canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@drawn
def ledger(results: Any) -> Figure:
    """Where the time of a final token goes: each part's milliseconds, stacked, for every method."""
    wide = readings.ledger(results.frame)
    figure, (axis,) = canvas(height=0.4 * len(wide) + 1.9)
    left = [0.0] * len(wide)
    for part in (part for part in PARTS if part in wide.columns):
        axis.barh(range(len(wide)), wide[part], left=left, color=PARTS[part], label=part, height=0.65)
        left = [start + length for start, length in zip(left, wide[part], strict=True)]
    axis.set_yticks(range(len(wide)), [line_name(*line) for line in wide.index], fontsize=8)
    axis.set_xlabel("milliseconds a final token, instrumented")
    axis.grid(axis="y", visible=False)
    figure.legend(ncols=6, loc="outside upper center", fontsize=8)
    return figure


def line_name(draft: str, method: str, finalize: str) -> str:
    """What one line of the ledger ran."""
    if method == "baseline":
        return "baseline"
    return f"{NAMES.get(draft, draft)}, {'FlashHead' if method == 'flash' else method}, {finalize}"


@drawn
def formats(results: Any) -> Figure:
    """What a read of n rows costs the target in each weight format in milliseconds, and relative to its own one row."""
    frame = results.frame
    figure, (left, right) = canvas(2, 3.5)
    for name, rows in frame.groupby("format"):
        medians = 1e3 * rows.groupby("rows")["seconds"].median()
        left.plot(medians.index, medians, "o-", color=colour(str(name)), label=NAMES.get(str(name), name), markersize=4)
        right.plot(medians.index, medians / medians.iloc[0], "o-", color=colour(str(name)), markersize=4)
    left.set(xlabel="rows read at once", ylabel="milliseconds", ylim=(0, None), title="a read of the target")
    right.set(xlabel="rows read at once", ylabel="times one row", ylim=(0, None), title="relative to its own one row")
    left.legend(loc="upper left")
    return figure


@drawn
def peers(results: Any) -> Figure:
    """Tokens per second of transformers and flashspec with the same models, plain and with a draft at its best k."""
    return panels(readings.peer_rates(results.frame), "dtype", peer_bars, ("{}, greedy", "tokens per second"), height=3.2)


def peer_bars(axis: Axes, table: Any) -> None:
    """Four bars: two engines, plain and assisted."""
    labels = []
    for place, ((mode, engine), rows) in enumerate(table.groupby(["mode", "engine"], sort=True)):
        best = rows.loc[rows["k"] == rows.groupby("k")["rate"].median().idxmax()]
        middle = best["rate"].median()
        axis.bar(place, middle, color=colour(engine), width=0.7)
        axis.plot([place] * len(best), best["rate"], "o", color="black", markersize=2, alpha=0.5)
        axis.annotate(f"{middle:.0f}", (place, best["rate"].max()), ha="center", va="bottom", fontsize=8)
        labels.append(f"{engine}\n{mode}" + (f", k = {best['k'].iloc[0]}" if mode == "assisted" else ""))
    axis.set_xticks(range(len(labels)), labels, fontsize=7)
    axis.grid(axis="x", visible=False)

"""Figures of what parts cost: the projection, the draft step, and how one dilutes in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import papers, readings
from flashspec.study.style import COLOURS, NAMES, canvas, colour, drawn, error, plain_ticks, stack
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

SHARES = [percent / 100 for percent in range(100)]


@drawn
def projection(results: Any) -> Figure:
    """Time of one projection at each shape: raw repeats as dots, median as a bar, the memory roofline as a tick."""
    table = results.frame.assign(ms=results.frame["seconds"] * 1e3, floor=readings.roofline_seconds(results.frame) * 1e3)
    figure, panels = lines_by_shape(table)
    for axis, lines in panels:
        for place, ((_, head), rows) in enumerate(lines):
            axis.barh(place, rows["ms"].median(), height=0.62, color=colour(head), alpha=0.8)
            axis.plot(rows["ms"], [place] * len(rows), "o", color="black", markersize=2, alpha=0.5)
            tick(axis, rows["floor"].median(), place)
            axis.annotate(f"  {rows['ms'].median():.3g}", (max(rows["ms"]), place), va="center", fontsize=8)
        axis.set_xlabel("milliseconds a projection (upright tick: roofline)")
    return figure


@drawn
def probes(results: Any) -> Figure:
    """Speedup of the projection over the fastest dense head against the probes, and what the bytes alone allow."""
    figure, (axis,) = canvas(height=3.8)
    for shape in shapes_in(results.frame):
        probe_curve(axis, results.frame, shape)
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="clusters probed, P", ylabel="times faster than the fastest dense head")
    plain_ticks(axis)
    axis.set_xticks(sorted(set(results.frame["probes"]) - {0}))
    axis.legend(loc="upper right")
    return figure


def probe_curve(axis: Axes, frame: DataFrame, shape: str) -> None:
    """Measured gains with intervals, and the ratio of bytes read as a dashed line."""
    counts = sorted(int(count) for count in readings.where(frame, shape=shape, head="flash")["probes"].unique())
    gains = [readings.projection_gain(frame, shape, count) for count in counts]
    allowed = [readings.bytes_ratio(frame, shape, count) for count in counts]
    name = NAMES.get(shape, shape)
    axis.plot(counts, allowed, "--", color=colour(shape), alpha=0.6, label=f"{name}: ratio of bytes")
    axis.plot(counts, [gain.value for gain in gains], "o-", color=colour(shape), label=f"{name}: measured")
    for count, gain in zip(counts, gains, strict=True):
        axis.errorbar(count, gain.value, yerr=error(gain), color=colour(shape), capsize=2)


@drawn
def draft_step(results: Any) -> Figure:
    """A whole draft step split into body and head, for each shape and head, in milliseconds."""
    figure, panels = lines_by_shape(results.frame)
    for axis, lines in panels:
        for place, ((_, head), rows) in enumerate(lines):
            parts_of_step(axis, place, head, rows)
        axis.set_xlabel("milliseconds a draft step (grey: body, colour: head, upright tick: timed whole)")
    return figure


def parts_of_step(axis: Axes, place: int, head: str, rows: DataFrame) -> None:
    """One stacked line: body, then head; a tick where the step ends when nothing inside it is timed."""
    body, projection, whole = (1e3 * rows[f"{part}_seconds"].median() for part in ("body", "head", "step"))
    axis.barh(place, body, color="#bdbdbd", height=0.6)
    axis.barh(place, projection, left=body, color=colour(head), height=0.6)
    tick(axis, whole, place)
    axis.annotate(f"  {whole:.3g}", (max(whole, body + projection), place), va="center", fontsize=8)


@drawn
def dilution(projection: Any, step: Any) -> Figure:
    """Speedup of a draft step against the head's share of it: what the projection's gain predicts, and what was measured."""
    figure, (axis,) = canvas(height=3.8)
    for shape in shapes_in(step.frame):
        dilution_of(axis, (projection.frame, step.frame), shape)
    thesis_dilution(axis)
    axis.set(xlabel="share of the dense draft step spent in its head", ylabel="draft step, times faster", xlim=(0, 1))
    axis.set(yscale="log", ylim=(0.9, 12))
    plain_ticks(axis)
    axis.legend(title="dot: measured, line: predicted", loc="upper left")
    return figure


def dilution_of(axis: Axes, tables: tuple[DataFrame, DataFrame], shape: str) -> None:
    """A curve from the projection's gain, where there is one, and a dot for the step, both at the step's fewest probes."""
    projection, step = tables
    probes = int(readings.where(step, shape=shape, head="flash")["probes"].min())
    if shape in set(projection["shape"]):
        gain = readings.projection_gain(projection, shape, readings.nearest_probes(projection, shape, probes)).value
        axis.plot(SHARES, [amdahl(share, gain) for share in SHARES], color=colour(shape), alpha=0.5)
    measured = readings.step_gain(step, shape, probes)
    share = readings.head_share(step, shape)
    axis.errorbar(share, measured.value, yerr=error(measured), fmt="o", color=colour(shape), label=NAMES.get(shape, shape))


def thesis_dilution(axis: Axes) -> None:
    """The thesis's own draft on the same axes."""
    gain = papers.thesis("projection")
    axis.plot(SHARES, [amdahl(share, gain) for share in SHARES], color=COLOURS["thesis"], alpha=0.4, linestyle=":")
    axis.plot(papers.head_share(), papers.thesis("draft_step"), "s", color=COLOURS["thesis"], label=NAMES["thesis"])


def shapes_in(frame: DataFrame) -> list[str]:
    """The shapes a table holds, in the order of the colours."""
    held = set(frame["shape"])
    return [*[shape for shape in NAMES if shape in held], *sorted(held - set(NAMES))]


def lines_by_shape(frame: DataFrame) -> tuple[Figure, list[tuple[Axes, list[Any]]]]:
    """One panel a shape and in it one labelled line a head, dense on top: (axis, [((probes, head), rows), ...])."""
    groups = {
        shape: list(reversed(list(readings.where(frame, shape=shape).groupby(["probes", "head"])))) for shape in shapes_in(frame)
    }
    figure, axes = stack([len(lines) for lines in groups.values()])
    for axis, (shape, lines) in zip(axes, groups.items(), strict=True):
        labels = [f"FlashHead, P = {probes}" if probes else NAMES.get(head, head) for (probes, head), _ in lines]
        axis.set_yticks(range(len(lines)), labels)
        axis.set_title(NAMES.get(shape, shape))
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.1)
    return figure, list(zip(axes, groups.values(), strict=True))


def tick(axis: Axes, value: float, place: int) -> None:
    """A short upright line at a value."""
    axis.plot([value] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.5)

"""Figures of what parts cost: the projection, the draft step, and how one dilutes in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import papers, readings
from flashspec.study.style import COLOURS, NAMES, canvas, colour, drawn, error, plain_ticks
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


@drawn
def projection(results: Any) -> Figure:
    """Time of one projection at each shape: raw repeats as dots, median as a bar, the memory roofline as a tick."""
    shapes = shapes_in(results.frame)
    figure, axes = canvas(len(shapes), 3.4)
    for axis, shape in zip(axes, shapes, strict=True):
        heads_of_shape(axis, readings.where(results.frame, shape=shape))
        axis.set_title(NAMES[shape])
    return figure


def heads_of_shape(axis: Axes, frame: DataFrame) -> None:
    """One line a head: bar, dots and roofline tick, in milliseconds."""
    table = frame.assign(ms=frame["seconds"] * 1e3, floor=readings.roofline_seconds(frame) * 1e3)
    groups = list(table.groupby(["probes", "head"]))
    for line, ((_, head), rows) in enumerate(reversed(groups)):
        axis.barh(line, rows["ms"].median(), height=0.62, color=colour(head), alpha=0.8)
        axis.plot(rows["ms"], [line] * len(rows), "o", color="black", markersize=2, alpha=0.5)
        axis.plot([rows["floor"].median()] * 2, [line - 0.4, line + 0.4], color="black", linewidth=1.5)
        axis.annotate(f" {rows['ms'].median():.3g}", (max(rows["ms"]), line), va="center", fontsize=8)
    labels = [f"FlashHead, P = {probes}" if probes else NAMES.get(head, head) for (probes, head), _ in reversed(groups)]
    axis.set_yticks(range(len(groups)), labels)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_xlabel("milliseconds a projection (tick: roofline)")


@drawn
def probes(results: Any) -> Figure:
    """Speedup of the projection over the fastest dense head against the probes, and what the bytes alone allow."""
    shapes = shapes_in(results.frame)
    figure, (axis,) = canvas(height=3.8)
    for shape in shapes:
        probe_curve(axis, results.frame, shape)
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="clusters probed, P", ylabel="times faster than the fastest dense head")
    plain_ticks(axis)
    axis.legend()
    return figure


def probe_curve(axis: Axes, frame: DataFrame, shape: str) -> None:
    """Measured gains with intervals, and the ratio of bytes read as a dashed line."""
    rows = readings.where(frame, shape=shape, head="flash")
    counts = sorted(rows["probes"].unique())
    gains = [readings.projection_gain(frame, shape, int(count)) for count in counts]
    dense = readings.where(frame, shape=shape, head=readings.dense_heads(frame, shape)[0])["bytes"].median()
    allowed = [dense / rows[rows["probes"] == count]["bytes"].median() for count in counts]
    axis.plot(counts, allowed, "--", color=colour(shape), alpha=0.6, label=f"{NAMES[shape]}: ratio of bytes")
    axis.plot(counts, [gain.value for gain in gains], "o-", color=colour(shape), label=f"{NAMES[shape]}: measured")
    for count, gain in zip(counts, gains, strict=True):
        axis.errorbar(count, gain.value, yerr=error(gain), color=colour(shape), capsize=2)


@drawn
def draft_step(results: Any) -> Figure:
    """A whole draft step split into body and head, for each shape and head, in milliseconds."""
    shapes = shapes_in(results.frame)
    figure, axes = canvas(len(shapes), 3.2)
    for axis, shape in zip(axes, shapes, strict=True):
        parts_of_step(axis, readings.where(results.frame, shape=shape))
        axis.set_title(NAMES[shape])
    axes[0].legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.25))
    return figure


def parts_of_step(axis: Axes, frame: DataFrame) -> None:
    """One stacked line a head: body, then head; a tick where the step ends when nothing inside it is timed."""
    groups = list(frame.groupby(["probes", "head"]))
    for line, ((_, head), rows) in enumerate(reversed(groups)):
        body, projection, whole = (1e3 * rows[f"{part}_seconds"].median() for part in ("body", "head", "step"))
        last = line == len(groups) - 1
        axis.barh(line, body, color="#bdbdbd", height=0.6, label="body" if last else None)
        axis.barh(line, projection, left=body, color=colour(head), height=0.6, label="head" if last else None)
        axis.plot([whole] * 2, [line - 0.4, line + 0.4], color="black", linewidth=1.5)
        axis.annotate(f" {whole:.3g}", (max(whole, body + projection), line), va="center", fontsize=8)
    labels = [f"FlashHead, P = {probes}" if probes else NAMES.get(head, head) for (probes, head), _ in reversed(groups)]
    axis.set_yticks(range(len(groups)), labels)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
    axis.set_xlabel("milliseconds a draft step (tick: timed whole)")


@drawn
def dilution(projection: Any, step: Any, probes: int = 256) -> Figure:
    """Speedup of a draft step against the head's share of it: what the projection's gain predicts, and what was measured."""
    figure, (axis,) = canvas(height=3.8)
    shares = [percent / 100 for percent in range(100)]
    for shape in shapes_in(step.frame):
        count = readings.nearest_probes(step.frame, shape, probes)
        gain = readings.projection_gain(projection.frame, shape, readings.nearest_probes(projection.frame, shape, probes)).value
        axis.plot(shares, [amdahl(share, gain) for share in shares], color=colour(shape), alpha=0.5)
        measured = readings.step_gain(step.frame, shape, count)
        share = readings.head_share(step.frame, shape)
        axis.errorbar(share, measured.value, yerr=error(measured), fmt="o", color=colour(shape), label=NAMES[shape])
    thesis_dilution(axis, shares)
    axis.set(xlabel="share of the dense draft step spent in its head", ylabel="draft step, times faster", xlim=(0, 1))
    axis.set(yscale="log", ylim=(0.9, 12))
    plain_ticks(axis)
    axis.legend(title="dot: measured, line: predicted")
    return figure


def thesis_dilution(axis: Axes, shares: list[float]) -> None:
    """The thesis's own draft on the same axes."""
    gain = papers.thesis("projection")
    axis.plot(shares, [amdahl(share, gain) for share in shares], color=COLOURS["thesis"], alpha=0.4, linestyle=":")
    axis.plot(papers.head_share(), papers.thesis("draft_step"), "s", color=COLOURS["thesis"], label=NAMES["thesis"])


def shapes_in(frame: DataFrame) -> list[str]:
    """The shapes a table holds, in the order of the colours."""
    held = set(frame["shape"])
    return [*[shape for shape in NAMES if shape in held], *sorted(held - set(NAMES))]

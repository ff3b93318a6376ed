"""The centre of the study: what is left of a faster projection in the draft step and in the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.measure.bench import Interval, Refused
from flashspec.study import papers, readings
from flashspec.study.style import NAMES, canvas, colour, drawn, error, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

STEPS = ["projection\nalone", "draft\nstep", "end to end,\neager", "end to end,\ndeferred"]


class Line(NamedTuple):
    """One line of the waterfall: the shape its costs are looked up by, the probes, and the draft that decodes, if one does."""

    shape: str
    probes: int
    draft: str | None = None


LINES = (Line("qwen3-0.6b", 256), Line("reference", 64, "main"), Line("reference-shallow", 64, "shallow"))


@drawn
def waterfall(projection: Any, step: Any, end_to_end: Any, temperature: float = 1.0) -> Figure:
    """How FlashHead's gain shrinks on its way from the projection to the text: the thesis beside what was measured here."""
    figure, (axis,) = canvas(height=4.4)
    thesis = [Interval(papers.thesis(name), *[float("nan")] * 2) for name in ("projection", "draft_step", "eager", "deferred")]
    cascade(axis, "thesis", thesis, -0.24)
    for place, line in enumerate(LINES):
        gains = gains_of((projection.frame, step.frame, end_to_end.frame), line, temperature)
        cascade(axis, line.draft or line.shape, gains, -0.08 + 0.16 * place)
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set_xticks(range(len(STEPS)), STEPS)
    axis.set(yscale="log", ylabel="FlashHead, times faster than dense", xlim=(-0.45, len(STEPS) - 0.5))
    plain_ticks(axis)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper right")
    return figure


def cascade(axis: Axes, name: str, gains: list[Interval | None], shift: float) -> None:
    """One line of the waterfall: a labelled point with its interval at each step that was measured."""
    known = [(step + shift, gain) for step, gain in enumerate(gains) if gain is not None]
    axis.plot([x for x, _ in known], [gain.value for _, gain in known], "o-", color=colour(name), label=NAMES[name], alpha=0.85)
    for x, gain in known:
        axis.errorbar(x, gain.value, yerr=error(gain), color=colour(name), capsize=2)
        text = f"{gain.value:.2f}" if gain.value < 10 else f"{gain.value:.1f}"
        axis.annotate(
            text, (x, gain.value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7, color=colour(name)
        )


def gains_of(tables: tuple[DataFrame, ...], line: Line, temperature: float) -> list[Interval | None]:
    """The four gains of one line; None where a table does not hold it."""
    projection, step, end_to_end = tables
    setting = {"draft": line.draft, "temperature": temperature, "rule": "coupling"}

    def decoding(finalize: str) -> Interval:
        return readings.method_gain(end_to_end, "flash", "dense", finalize=finalize, **setting)

    asked: list[Callable[[], Interval]] = [
        lambda: readings.projection_gain(projection, line.shape, readings.nearest_probes(projection, line.shape, line.probes)),
        lambda: readings.step_gain(step, line.shape, readings.nearest_probes(step, line.shape, line.probes)),
        lambda: decoding("eager"),
        lambda: decoding("deferred"),
    ]
    return [held(question) for question in asked]


def held(question: Callable[[], Interval]) -> Interval | None:
    """The answer, or None if the table has no row for it or the comparison is refused."""
    try:
        return question()
    except (readings.Missing, Refused):
        return None

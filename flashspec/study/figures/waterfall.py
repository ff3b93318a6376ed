"""The centre of the study: what is left of a faster projection in the draft step and in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
def waterfall(projection: Any, step: Any, end_to_end: Any) -> Figure:
    """How FlashHead's gain shrinks on its way from the projection to the text: the thesis beside what was measured here."""
    figure, (axis,) = canvas(height=4.6)
    thesis = [Interval(papers.thesis(name), *[float("nan")] * 2) for name in ("projection", "draft_step", "eager", "deferred")]
    cascade(axis, Path("thesis", -0.24), thesis)
    tables = (projection.frame, step.frame, end_to_end.frame)
    for place, line in enumerate(LINES):
        name, shift = line.draft or line.shape, -0.08 + 0.16 * place
        cascade(axis, Path(name, shift), gains_of(tables, line, 1.0))
        if line.draft:
            cascade(axis, Path(name, shift, ":", "white"), [None, None, *gains_of(tables, line, 0.0)[2:]])
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set_xticks(range(len(STEPS)), STEPS)
    axis.set(yscale="log", ylabel="FlashHead, times faster than dense", xlim=(-0.45, len(STEPS) - 0.4))
    plain_ticks(axis)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper right", title="solid: temperature 1, dotted: greedy")
    return figure


class Path(NamedTuple):
    """How one line of the waterfall is drawn."""

    name: str
    shift: float
    style: str = "-"
    fill: str | None = None


def cascade(axis: Axes, path: Path, gains: Sequence[Interval | None]) -> None:
    """One line of the waterfall: a labelled point with its interval at each step that was measured."""
    known = [(step + path.shift, gain) for step, gain in enumerate(gains) if gain is not None]
    look: Any = {"color": colour(path.name), "alpha": 0.85, "linestyle": path.style}
    label = None if path.fill else NAMES[path.name]
    axis.plot([x for x, _ in known], [g.value for _, g in known], marker="o", mfc=path.fill, label=label, **look)
    for x, gain in known:
        axis.errorbar(x, gain.value, yerr=error(gain), color=colour(path.name), capsize=2, linewidth=1)
        text = f"{gain.value:.2f}" if gain.value < 10 else f"{gain.value:.1f}"
        below = x > 1.5 and path.name != "thesis" and not path.fill
        where: Any = {"xytext": (0, -13 if below else 7), "textcoords": "offset points", "ha": "center"}
        axis.annotate(text, (x, gain.value), fontsize=7, color=colour(path.name), **where)


def gains_of(tables: tuple[DataFrame, ...], line: Line, temperature: float) -> list[Interval | None]:
    """The four gains of one line; None where a table does not hold it."""
    projection, step, end_to_end = tables
    setting = {"draft": line.draft, "temperature": temperature, "rule": "coupling"}

    def decoding(finalize: str) -> Interval:
        return readings.method_gain(end_to_end, "flash", readings.DENSE, finalize=finalize, **setting)

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

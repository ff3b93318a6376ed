"""What pays and what does not, in one picture: ratios with their intervals, one line a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study.style import drawn, plain_ticks, stack

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@drawn
def answers(*results: Any, lines: DataFrame) -> Figure:
    """Ratios with 95 % intervals over prompts, one line a question, one colour a temperature; 1 is no difference."""
    import seaborn

    known = lines.dropna(subset=["ratio"])
    questions = list(dict.fromkeys(known["question"]))
    settings = sorted(set(zip(known["temperature"], known["rule"], strict=True)))
    figure, (axis,) = stack([max(2, 2 * len(questions))])
    colours = seaborn.color_palette("colorblind", max(1, len(settings)))
    for place, (temperature, rule) in enumerate(settings):
        rows = known[(known["temperature"] == temperature) & (known["rule"] == rule)]
        shift = 0.6 * (place + 0.5) / len(settings) - 0.3
        places = [questions.index(name) + shift for name in rows["question"]]
        bars = [(rows["ratio"] - rows["low"]).fillna(0.0), (rows["high"] - rows["ratio"]).fillna(0.0)]
        label = f"T = {temperature:g}" + (f", {rule}" if temperature else "")
        axis.errorbar(rows["ratio"], places, xerr=bars, fmt="o", markersize=4, capsize=2, color=colours[place], label=label)
    axis.axvline(1.0, color="#666666", linewidth=1)
    axis.set(xscale="log", xlabel="times faster (95 % interval over rows of prompts)", ylim=(len(questions) - 0.4, -0.6))
    axis.set_yticks(range(len(questions)), questions)
    plain_ticks(axis)
    if settings:
        figure.legend(loc="outside upper right", ncols=len(settings))
    return figure

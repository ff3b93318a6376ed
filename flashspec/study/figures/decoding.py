"""Figures of decoding: tokens per second, acceptance, and where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import readings
from flashspec.study.style import NAMES, canvas, colour, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

HEADS = {"dense": "dense", "int8": "int8", "flash": "Flash"}


@drawn
def throughput(results: Any, draft: str = "main", rule: str = "coupling") -> Figure:
    """Tokens per second of every method at its best k, one panel a temperature; dots are repeats."""
    frame = results.frame
    temperatures = sorted(readings.where(frame, rule=rule)["temperature"].unique())
    figure, axes = canvas(len(temperatures), 3.4, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        methods_at(axis, frame, {"draft": draft, "rule": rule, "temperature": temperature})
        axis.set_title(f"T = {temperature:g}")
    axes[0].set_ylabel("tokens per second")
    return figure


def methods_at(axis: Axes, frame: DataFrame, setting: dict[str, Any]) -> None:
    """Bars: baseline, then each measured draft head with eager and deferred final token."""
    heads = [name for name in HEADS if name in set(frame["method"])]
    lines = [("baseline", None), *((m, f) for m in heads for f in ("eager", "deferred"))]
    for place, (method, finalize) in enumerate(lines):
        rate = rates(frame, method, finalize, setting)
        filled = finalize != "eager"
        axis.bar(place, rate.median(), color=colour(method) if filled else "white", edgecolor=colour(method), width=0.7)
        axis.plot([place] * len(rate), rate, "o", color="black", markersize=2, alpha=0.5)
        axis.annotate(f"{rate.median():.0f}", (place, rate.max()), ha="center", va="bottom", fontsize=8, xytext=(0, 2),
                      textcoords="offset points")  # fmt: skip
    labels = ["base-\nline", *(f"{HEADS[method]}\n{finalize}" for method, finalize in lines[1:])]
    axis.set_xticks(range(len(lines)), labels, fontsize=6)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("")


def rates(frame: DataFrame, method: str, finalize: str | None, setting: dict[str, Any]) -> Any:
    """Tokens per second by repeat."""
    chosen = readings.chosen_rows(frame, method, **setting, **({"finalize": finalize} if finalize else {}))
    return readings.by_repeat(chosen, "emitted") / readings.by_repeat(chosen, "seconds")


@drawn
def blocks(results: Any, rule: str = "coupling", finalize: str = "deferred") -> Figure:
    """Throughput against k for each draft and head, one panel a temperature; the dashed line is the baseline."""
    table = readings.where(readings.medians(results.frame), rule=rule)
    temperatures = sorted(table["temperature"].unique())
    figure, axes = canvas(len(temperatures), 3.4, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        block_curves(axis, readings.where(table, temperature=temperature), finalize)
        axis.set(title=f"T = {temperature:g}", xlabel="drafted tokens a round, k")
    axes[0].set_ylabel("tokens per second")
    axes[0].legend(fontsize=6, loc="upper right")
    return figure


def block_curves(axis: Axes, table: DataFrame, finalize: str) -> None:
    """One curve a draft, head and number of probes; more probes are drawn paler."""
    axis.axhline(readings.where(table, method="baseline")["throughput"].median(), color=colour("baseline"), linestyle="--")
    lines = readings.where(table, finalize=finalize)
    fewest = lines["probes"].where(lines["probes"] > 0).min()
    for (draft, method, probes), rows in lines[lines["method"] != "baseline"].groupby(["draft", "method", "probes"]):
        style: Any = {"marker": "o" if draft == "main" else "^", "linestyle": "-" if draft == "main" else ":"}
        style["alpha"] = 0.5 if probes > fewest else 1.0
        name = f"{NAMES.get(draft, draft)}, {method}" + (f", P = {probes}" if probes else "")
        axis.plot(rows["k"], rows["throughput"], color=colour(method), label=name, **style)
    axis.set_xticks(sorted(set(lines["k"]) - {0}))


@drawn
def acceptance(results: Any, rule: str = "coupling") -> Figure:
    """Accepted share of drafted tokens by kind of prompt, draft head and temperature."""
    import seaborn

    rows = readings.where(results.frame, rule=rule)
    rows = rows[rows["method"] != "baseline"]
    sums = rows.groupby(["draft", "method", "temperature", "kind"])[["accepted", "drafted"]].sum().reset_index()
    sums["share"] = sums["accepted"] / sums["drafted"]
    drafts = sorted(sums["draft"].unique())
    figure, axes = canvas(len(drafts), 3.4, sharey=True)
    for axis, draft in zip(axes, drafts, strict=True):
        seaborn.stripplot(readings.where(sums, draft=draft), x="share", y="kind", hue="method", ax=axis, size=6,
                          palette={m: colour(m) for m in HEADS}, dodge=True, jitter=False)  # fmt: skip
        axis.set(title=NAMES.get(draft, draft), xlabel="accepted / drafted (one dot a temperature)", ylabel="")
        axis.set_xlim(0, 1)
    return figure


@drawn
def prediction(results: Any, rule: str = "coupling") -> Figure:
    """Measured tokens per second against those that parts and counts foretell; the band is 5 % wide on either side."""
    table = readings.where(readings.predictions(results.frame), rule=rule)
    figure, (axis,) = canvas(height=4.2)
    for (draft, method), rows in table.groupby(["draft", "method"]):
        foretold, measured = rows["emitted"] / rows["predicted"], rows["emitted"] / rows["seconds"]
        name = f"{NAMES.get(draft, draft)}, {method}"
        axis.plot(foretold, measured, "o" if draft == "main" else "^", color=colour(method), alpha=0.5, markersize=4, label=name)
    ends = [0.9 * (table["emitted"] / table["seconds"]).min(), 1.1 * (table["emitted"] / table["seconds"]).max()]
    axis.plot(ends, ends, color="#666666", linewidth=1)
    axis.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#666666", alpha=0.15)
    axis.set(xlabel="predicted tokens per second", ylabel="measured tokens per second")
    axis.legend(fontsize=8, loc="upper left")
    return figure

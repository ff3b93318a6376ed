"""One function per figure: tables in, picture out. Numbers come from readings, marks and looks from `style`."""

from __future__ import annotations

from functools import reduce
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from flashspec.study import chain, drafting, papers, stages
from flashspec.study.compare import DENSE, WHO, sampled, speedups
from flashspec.study.frames import DataFrame, framed, joined
from flashspec.study.quote import named
from flashspec.study.style import SHADES, colour, drawn, forest, overlaid, panelled, plotted, shaded
from flashspec.study.timeline import SPENT, timeline
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "answers", "combined", "draft_race", "draft_steps", "final_token", "head_recall", "head_share",
    "ledger", "predicted_measured", "throughput", "timeline", "waterfall",
]  # fmt: skip

STYLES, MARKS = ("-", ":", "--", "-."), "os^D"
PLAIN, OVER = "times plain decoding's speed", "FlashHead over dense, times faster"


def who(table: DataFrame, *columns: str) -> DataFrame:
    """A table whose lines say who drafts with which head, and these columns, as far as they vary, in the head's colour."""
    drafts = table["draft"].where(table["draft"] != "", table["method"]).map(named)
    words = [drafts, table["head"].map(named), *(table[column] for column in columns)]
    varied = [each for each in words if each.nunique() > 1] or words
    return table.assign(line=reduce(lambda a, b: a + ", " + b, varied), shade=table["head"].map(colour))


@drawn
def answers(*results: Any, lines: DataFrame) -> Figure:
    """Ratios with 95 % intervals over prompts, one line per question, one colour per temperature; 1 is no difference."""
    known = lines.dropna(subset=["ratio"])
    table = known.assign(line=known["question"], rank=known["question"].factorize()[0])
    figure = forest(overlaid(table.sort_values(["temperature", "rule"], kind="stable")), "times faster", 0.5)
    figure.axes[0].set_xscale("log")
    return figure


@drawn
def waterfall(results: Any, pieces: Any) -> Figure:
    """FlashHead over the dense head of the same format at every stage: the thesis beside what was measured here."""
    table, thesis = chain.chain(results.frame, pieces.frame), ("projection", "draft_step", "eager", "deferred")
    printed = {"ratio": [papers.THESIS[name] for name in thesis], "mark": "s-", "shade": colour("thesis"), "label": "the thesis"}
    shown = [framed({"at": range(len(thesis)), **printed})]
    for place, (name, lines) in enumerate(table.groupby("name")):
        for number, sampling in enumerate(sorted(set(lines["sampling"]) - {""}) or [""]):
            rows = lines[lines["sampling"].isin(["", sampling])].drop_duplicates("stage")
            at = rows["stage"].map(chain.STAGES.index) + 0.06 * place + 0.02 * number
            looks = {"shade": SHADES[place % len(SHADES)], "mark": "o" + STYLES[number % len(STYLES)]}
            looks["label"] = f"{named(name)}, {sampling}".removesuffix(", ")
            shown.append(rows.assign(at=at, **looks).sort_values("at"))
    ticks = {"xticks": range(len(chain.STAGES)), "xticklabels": [stage.replace(", ", ",\n") for stage in chain.STAGES]}
    figure = plotted(joined(shown), "at", "ratio", 4.4, yscale="log", ylabel=OVER, xlim=(-0.4, len(chain.STAGES) - 0.6), **ticks)
    figure.axes[0].axhline(1, color="#666666", linewidth=1)
    return figure


@drawn
def throughput(results: Any) -> Figure:
    """Speedup over plain decoding of everything that drafts at its best setting, with 95 % intervals, one panel per sampling."""
    table = speedups(results.frame, [*WHO, "finalize"])
    more = ["finalize"] if table["finalize"].nunique() > 1 else []
    return forest(who(table, *more).assign(rank=-table["ratio"]), PLAIN)


@drawn
def head_share(*results: Any) -> Figure:
    """FlashHead over the dense head against the head's share of the time; the line is a head that costs nothing."""
    table = sampled(joined(chain.by_share(each.frame) for each in results)).dropna(subset=["share", "ratio"])
    table = table[table["finalize"] == "deferred"]
    names = table["target"] + " with " + table["draft"].where(table["draft"] != "", table["method"]).map(named)
    marks = [MARKS[place // len(SHADES) % len(MARKS)] for place in names.factorize()[0]]
    looks = {"label": names, "shade": shaded(names), "mark": marks, "hollow": table["temperature"] > 0}
    across = "dense head's share of the time, % (filled: greedy, hollow: sampled)"
    figure = plotted(table.assign(**looks), "share", "ratio", 4.2, xlabel=across, ylabel=OVER)
    axis, shares = figure.axes[0], np.linspace(0, table["share"].max() + 2 if len(table) else 1)
    axis.plot(shares, [amdahl(share / 100, inf) for share in shares], "--", color="#666666", label="a head that costs nothing")
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set_xlim(0)
    return figure


@drawn
def final_token(results: Any) -> Figure:
    """Deferred over eager final token, measured with its interval and predicted from parts, one panel per sampling."""
    return forest(who(chain.deferral(results.frame)), "deferred over eager, times faster")


@drawn
def ledger(results: Any) -> Figure:
    """Milliseconds per token by part as timed alone, stacked; the black tick is the measured total."""
    table = who(stages.stages(results.frame).dropna(subset=["predicted"]), "finalize")
    figure, panels = panelled(table, 0.28, "milliseconds a token")
    for axis, lines in panels:
        left: Any = 0.0
        for part, shade in SPENT.items():
            label = part if lines[part].any() else None
            axis.barh(lines["spot"], lines[part], left=left, height=0.65, color=shade, label=label)
            left = left + lines[part].fillna(0.0)
        axis.plot(lines["ms"], lines["spot"], "|", color="black", markersize=11, label="measured whole")
    return figure


@drawn
def head_recall(results: Any) -> Figure:
    """Agreement with the dense head against megabytes read for one row; filled where calibrated ids are scored always."""
    table = chain.usual(chain.recalls(results.frame)).sort_values("megabytes")
    names = table["draft"] + ", " + table["name"] if table["draft"].nunique() > 1 else table["name"]
    looks = {"label": names, "shade": table["head"].map(colour), "mark": "o:", "hollow": table["calibrated"].ne(True)}
    words = {"xlabel": "megabytes read for one row", "ylabel": "agrees with the dense head, % of rows"}
    return plotted(table.assign(**looks), "megabytes", "agreement", 4.0, xscale="log", **words)


@drawn
def draft_race(results: Any) -> Figure:
    """Every draft's best setting over plain decoding with its interval, the fastest on top, one colour per sampling."""
    table = drafting.beside_plain(results.frame)
    several = table["target"].nunique() > 1
    table = table.assign(line=table["draft"] + (" on " + table["target"] if several else ""), target="")
    rank = -table.groupby("line")["ratio"].transform("mean")
    return forest(overlaid(table.assign(rank=rank)), PLAIN)


@drawn
def draft_steps(results: Any) -> Figure:
    """Milliseconds of a draft step over layers, one line for each set of shapes with equal parameters in their layers."""
    table = drafting.steps(results.frame)
    varied = [name for name in drafting.SAME if name == "base" or table[name].nunique() > 1]
    names = table[varied].astype(str).agg(", ".join, axis=1) if len(table) else table["base"]
    table = table.assign(label=names, shade=shaded(names), mark="o-").sort_values("layers", kind="stable")
    words = {"xlabel": "layers", "ylabel": "milliseconds a step"}
    return plotted(table, "layers", "ms", 3.4, xscale="log", yscale="log", **words)


@drawn
def predicted_measured(results: Any) -> Figure:
    """Measured against predicted tokens per second, one dot per setting and half of its prompts; the band is 5 % wide."""
    table = sampled(stages.predictions(results.frame))
    table = table.assign(**{name: table["emitted"] / table[name] for name in ("predicted", "seconds")})
    looks = {"label": table["sampling"], "shade": shaded(table["sampling"]), "alpha": 0.5}
    words = {"xlabel": "predicted tokens a second", "ylabel": "measured tokens a second"}
    figure = plotted(table.assign(**looks), "predicted", "seconds", 4.0, **words)
    if len(table):
        ends = [0.9 * table["seconds"].min(), 1.1 * table["seconds"].max()]
        low, high = ([share * end for end in ends] for share in (0.95, 1.05))
        figure.axes[0].fill_between(ends, low, high, color="#666666", alpha=0.2, label="5 % off")
    return figure


@drawn
def combined(results: Any) -> Figure:
    """Speedup over plain decoding of every place that drafts, by head and final token, with 95 % intervals."""
    table = speedups(results.frame, stages.WHOLE)
    where = table["draft"].where(table["draft"] != "", table["exits"].str.replace(" ", "+"))
    late, fast = table["finalize"] == "deferred", ~table["head"].isin(DENSE)
    marks = {"line": (table["method"].map(named) + " " + where).str.strip(), "shade": table["head"].map(colour)}
    marks |= {"label": table["head"].map(named) + ", " + table["finalize"], "hollow": ~late, "up": 0.3 - 0.2 * late - 0.4 * fast}
    return forest(table.assign(**marks), PLAIN, 0.45)

"""Figures of chapters 1 to 4 and 12: answers, the chain from the projection to the text, final tokens, rounds, engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study import chain, papers, stages
from flashspec.study.compare import PARTS
from flashspec.study.figures.marks import by_sampling, canvas, curves, forest, keyed, overlaid, panelled, probes_of, stacked
from flashspec.study.style import colour, drawn, named, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

STYLES = ("-", ":", "--", "-.")
STEP = {"body of the draft": "#bdbdbd", "its head": "#0072B2"}
SPENT = dict(zip(PARTS, ("#d9d9d9", "#5f6368", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#F0E442"), strict=True))


@drawn
def answers(*results: Any, lines: DataFrame) -> Figure:
    """Ratios with 95 % intervals over prompts, one line a question, one colour a temperature; 1 is no difference."""
    known = lines.dropna(subset=["ratio"])
    same = dict.fromkeys(("target", "weights", "dtype", "engine"), "")
    order = {question: place for place, question in enumerate(dict.fromkeys(known["question"]))}
    table = overlaid(known.assign(**same, line=known["question"], rank=known["question"].map(order)))
    figure = forest(table, "times faster (95 % interval over rows of prompts)", 0.5)
    figure.axes[0].set_xscale("log")
    plain_ticks(figure.axes[0])
    return figure


@drawn
def waterfall(results: Any, pieces: Any) -> Figure:
    """FlashHead over the dense head of the same format at every stage: the thesis beside what was measured here."""
    figure, (axis,) = canvas(height=4.4)
    table = chain.chain(results.frame, pieces.frame)
    table = table.assign(at=table["stage"].map(chain.STAGES.index).astype(float))
    thesis = [papers.THESIS[name] for name in ("projection", "draft_step", "eager", "deferred")]
    axis.plot(range(len(thesis)), thesis, "s-", color=colour("thesis"), label="the thesis")
    samplings = sorted(set(table["sampling"]) - {""}) or [""]
    for place, name in enumerate(sorted(set(table["name"]))):
        for number, sampling in enumerate(samplings):
            rows = table[(table["name"] == name) & table["sampling"].isin(["", sampling])].drop_duplicates("stage")
            if number == 0 or (rows["sampling"] == sampling).any():
                label = ", ".join(filter(None, (named(name), sampling if rows["sampling"].any() else "")))
                moved = rows.sort_values("at").assign(line=label, shade=colour(name))
                moved["at"] += 0.06 * place + 0.02 * number
                curves(axis, moved, ("at", "ratio"), "o", linestyle=STYLES[number % 4], alpha=0.85)
    axis.axhline(1, color="#666666", linewidth=1)
    axis.set_xticks(range(len(chain.STAGES)), [stage.replace(", ", ",\n") for stage in chain.STAGES])
    axis.set(yscale="log", ylabel="FlashHead over dense, times faster", xlim=(-0.4, len(chain.STAGES) - 0.6))
    plain_ticks(axis)
    return keyed(figure, 3)


@drawn
def draft_step(pieces: Any) -> Figure:
    """A whole draft step split into body and head, for each shape and head, in milliseconds."""
    rows = pieces.frame
    table = rows.pivot_table(index=["shape", "head", "format", "probes"], columns="piece", values="seconds", aggfunc="median")
    table = table.reindex(columns=["body", "head", "step"]).mul(1e3).set_axis([*STEP, "step"], axis=1).reset_index()
    (body, _), shape = STEP, table["shape"]
    bodies = table[body].fillna(table.groupby("shape")[body].transform("max"))
    line = table["head"] + ", " + table["format"] + probes_of(table)
    return stacked(table.assign(line=line, panel=shape.map(named), **{body: bodies}), STEP, "step")


def who(table: DataFrame, *columns: str) -> DataFrame:
    """A table by sampling whose lines say who drafts with which head, and these columns, in the head's colour."""
    names = table["draft"].where(table["draft"] != "", table["method"]).map(named) + ", " + table["head"]
    for column in columns:
        names = names + ", " + table[column]
    return by_sampling(table.assign(line=names, shade=table["head"].map(colour)))


@drawn
def throughput(results: Any) -> Figure:
    """Speedup over plain decoding of every draft, head and way to finalise at its best setting, one panel a sampling."""
    return forest(who(chain.rates(results.frame).dropna(subset="ratio"), "finalize"), "times plain decoding")


@drawn
def final_token(results: Any) -> Figure:
    """Deferred over eager final token, measured with its interval and predicted from parts, one panel a sampling."""
    return forest(who(chain.deferral(results.frame)), "deferred over eager")


@drawn
def ledger(results: Any) -> Figure:
    """Milliseconds a token by part as timed alone, stacked; the black tick is what the whole run took."""
    table = stages.stages(results.frame, chain.SIDE).dropna(subset=["predicted"])
    return stacked(who(table, "finalize"), SPENT, "ms")


@drawn
def formats(pieces: Any) -> Figure:
    """A check of n rows in each weight format, in milliseconds and relative to a check of one row."""
    table = chain.checks(pieces.frame)
    table = table.assign(line=table["shape"].map(named) + ", " + table["format"], shade=table["format"].map(colour))
    figure, axes = canvas(2, 3.5)
    for axis, column, words in zip(axes, ("ms", "ratio"), ("milliseconds a check", "times a check of one row"), strict=True):
        curves(axis, table, ("rows", column))
        axis.set(xlabel="rows read at once", ylabel=words, ylim=(0, None))
    return keyed(figure)


@drawn
def peers(results: Any) -> Figure:
    """Greedy tokens a second of each engine with the same models at its best k; bars are means over prompts, dots prompts."""
    import seaborn

    table = chain.engine_rates(results.frame)
    figure, panels = panelled(table.assign(panel=table["dtype"] + ", greedy"), 3.2, sharey=True)
    palette = {name: colour(name) for name in set(table["engine"])}
    for axis, rows in panels:
        shared: dict[str, Any] = {"data": rows, "x": "mode", "y": "rate", "hue": "engine", "ax": axis}
        seaborn.barplot(**shared, palette=palette, errorbar=None)
        seaborn.stripplot(**shared, palette=dict.fromkeys(palette, "black"), dodge=True, size=3, jitter=False, legend=False)
        axis.set(xlabel="", ylabel="tokens a second")
    return keyed(figure)

"""Results for a terminal: each experiment's own reading, units in the headings, and no column in which nothing differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flashspec.study import chain, drafting, exits, heads, real_shapes
from flashspec.study.frames import DataFrame, framed, groups, joined
from flashspec.study.tables import Results
from flashspec.study.timeline import WHO

PLACE = ["target", "draft", "method", "head", "format", "exits", "k", "probes", "shortlist", "interval", "finalize"]
PLAIN = {"rate": "tokens/s", "acceptance": "acceptance", "tokens_a_check": "tokens/check", "verdict": "times plain decoding"}
DENSE = {"ms": "ms", "megabytes": "MB", "speed": "% of memory speed", "verdict": "times as fast as"}
AGREED = {"share": "% of rows read", "megabytes": "MB", "agreement": "% agrees with dense", "coverage": "% covered"}
AGREED |= {"minutes": "minutes"}
HELD = {"perplexity": "perplexity", "right": "best token right", "chosen": "continuations found"}
DEEP = {name: name.replace("_", " ") for name in ("agreement", "overlap", "top_5", "wrongly_accepted", "wrongly_rejected")}
SHAPE = ["shape", "layers", "piece", "head", "format", "probes", "shortlist", "rows"]
ROUNDS = {"rounds": "rounds", "drafted": "drafted", "accepted": "accepted", "tokens": "tokens"}


class Reading(NamedTuple):
    """Results as a table, the columns that say what a line is about, and headings with units of those that were measured."""

    read: Callable[[Results], DataFrame]
    about: list[str]
    measured: Mapping[str, str]


def pieces(frame: DataFrame) -> DataFrame:
    """Pieces of a round beside the dense head of their format, and checks beside a check of one row."""
    rows, found = frame[frame["piece"] != "check"], list[DataFrame]()
    if len(rows):
        found.append(heads.costs(rows))
        found[0]["verdict"] = "dense: " + found[0]["verdict"]
    if len(rows) < len(frame):
        checks = chain.checks(frame)
        found.append(checks.assign(piece="check", verdict="1 row: " + (1 / checks["ratio"]).map("{:.2f}×".format).astype(str)))
    return joined(found)


def recalls(frame: DataFrame) -> DataFrame:
    """How often heads agree with the dense one; how long their builds took where nothing was judged."""
    return heads.by_kind(frame) if frame["kind"].any() else heads.builds(frame)


def rounds(frame: DataFrame) -> DataFrame:
    """One line per decode: its rounds, and its drafted, accepted and final tokens."""
    lines = list[dict[str, Any]]()
    for who, rows in groups(frame, [*WHO, "kind", "prompt"], sort=False):
        judged = rows[(rows["stage"] == rows["stage"].max()) & (rows["adds"] > 0)]
        drafted = rows[rows["stage"] == 0]["adds"].sum()
        counts = {"rounds": judged["adds"].sum(), "accepted": judged["kept"].sum()}
        tokens = counts["rounds"] + counts["accepted"]
        lines.append({**who, **counts, "tokens": tokens, "drafted": drafted * (who["method"] != "baseline")})
    return framed(lines)


READINGS = {
    "race": Reading(lambda found: chain.rates(found.frame), ["sampling", *PLACE], PLAIN),
    "parts": Reading(lambda found: pieces(found.frame), SHAPE, DENSE),
    "recall": Reading(lambda found: recalls(found.frame), ["draft", "name", "vocab", "hidden", "cluster_size"], AGREED),
    "exits": Reading(lambda found: exits.shares(found.frame), ["target", "depth", "against"], DEEP),
    "family": Reading(lambda found: drafting.itself(found.frame).reset_index(), ["draft"], HELD),
    "decodes": Reading(lambda found: rounds(found.frame), [*WHO, "kind", "prompt"], ROUNDS),
    "real_shapes": Reading(lambda found: real_shapes.costs(found).reset_index(), ["part", "what", "shape", "graphs"], {}),
}


def short(number: float) -> str:
    """Three digits, thousands whole."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def summary(results: Results) -> DataFrame:
    """A table for people; the rows themselves where an experiment has no reading."""
    if not (reading := READINGS.get(results.origin["experiment"])):
        return results.frame
    table, known = reading.read(results), reading.measured
    about = [name for name in reading.about if name in table and (table[name].replace("", None).nunique() > 1 or len(table) == 1)]
    shown = [name for name in (known or table) if name in table and name not in reading.about]
    return table[[*about, *shown]].dropna(axis=1, how="all").rename(columns=dict(known))

"""Results for a terminal: each experiment's own reading, units in the headings, and no column in which nothing differs."""

from __future__ import annotations

from collections.abc import Callable

from flashspec.study import chain, drafting, exits, real_shapes
from flashspec.study.frames import DataFrame, joined
from flashspec.study.tables import Results
from flashspec.study.timeline import WHO

PLACE = ["sampling", "target", "draft", "method", "head", "format", "exits", "k", "probes", "shortlist", "interval", "finalize"]
PLAIN = {"rate": "tokens/s", "acceptance": "share accepted", "tokens_a_check": "tokens/check", "verdict": "times plain decoding"}
SHAPE = ["shape", "layers", "piece", "k", "head", "format", "probes", "shortlist", "rows"]
DENSE = {"ms": "ms", "megabytes": "MB", "speed": "% of memory speed", "verdict": "times as fast as"}
AGREED = {"share": "% of rows read", "megabytes": "MB", "agreement": "% agrees with dense", "coverage": "% covered"}
HELD = {"perplexity": "perplexity", "right": "best token right", "chosen": "continuations found"}
DEEP = {name: name.replace("_", " ") for name in ("agreement", "overlap", "top_5", "wrongly_accepted", "wrongly_rejected")}


def pieces(frame: DataFrame) -> DataFrame:
    """Pieces of a round beside the dense head of their format, and checks beside a check of one row."""
    rows, found = frame[frame["piece"] != "check"], list[DataFrame]()
    if len(rows):
        costs = chain.costs(rows)
        found.append(costs.assign(verdict="dense: " + costs["verdict"]))
    if len(rows) < len(frame):
        checks = chain.checks(frame)
        found.append(checks.assign(piece="check", verdict=(1 / checks["ratio"]).map("1 row: {:.2f}×".format, na_action="ignore")))
    return joined(found)


def rounds(frame: DataFrame) -> DataFrame:
    """One line per decode: its rounds, and its drafted, accepted and final tokens."""
    keys = [*WHO, "kind", "prompt"]
    last = frame["stage"] == frame.groupby(keys, dropna=False)["stage"].transform("max")
    judged, drafts = last & (frame["adds"] > 0), (frame["stage"] == 0) & (frame["method"] != "baseline")
    counts = {"rounds": frame["adds"] * judged, "drafted": frame["adds"] * drafts, "accepted": frame["kept"] * judged}
    sums = frame.assign(**counts).groupby(keys, dropna=False, sort=False)[list(counts)].sum().reset_index()
    return sums.assign(tokens=sums["rounds"] + sums["accepted"])


# by experiment: how it is read, the columns that say what a line is about, and headings with units of those that were measured
READINGS: dict[str, tuple[Callable[[Results], DataFrame], list[str], dict[str, str]]] = {
    "race": (lambda found: chain.rates(found.frame), PLACE, PLAIN),
    "parts": (lambda found: pieces(found.frame), SHAPE, DENSE),
    "recall": (
        lambda found: (chain.by_kind if found.frame["kind"].any() else chain.builds)(found.frame),
        ["draft", "name", "vocab", "hidden", "cluster_size"],
        {**AGREED, "minutes": "minutes"},
    ),
    "exits": (lambda found: exits.shares(found.frame), ["target", "depth", "against"], DEEP),
    "family": (lambda found: drafting.itself(found.frame).reset_index(), ["draft"], HELD),
    "decodes": (
        lambda found: rounds(found.frame),
        [*WHO, "kind", "prompt"],
        {name: name for name in ("rounds", "drafted", "accepted", "tokens")},
    ),
    "real_shapes": (lambda found: real_shapes.costs(found).reset_index(), ["part", "what", "shape", "graphs"], {}),
}


def short(number: float) -> str:
    """Three digits, thousands whole."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def summary(results: Results) -> DataFrame:
    """A table for people; the rows themselves where an experiment has no reading."""
    if results.origin["experiment"] not in READINGS:
        return results.frame
    read, who, measured = READINGS[results.origin["experiment"]]
    table = read(results)
    about = [name for name in who if name in table and (table[name].replace("", None).nunique() > 1 or len(table) == 1)]
    shown = [name for name in measured or table if name in table and name not in who]
    return table[[*about, *shown]].dropna(axis=1, how="all").rename(columns=measured)

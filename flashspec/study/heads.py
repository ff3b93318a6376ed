"""Draft heads: what each covers and costs, which is fastest under verification, and the effects of depth and building."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashspec.study.chain import PLACE, SIZE, faster
from flashspec.study.compare import CONTEXT, WHO, best, gain, like_for_like, speedups
from flashspec.study.frames import DataFrame, framed, having, pivoted
from flashspec.study.recall import PARTS
from flashspec.study.style import named
from flashspec.theory import amdahl

CLUSTERING = ["metric", "homes", "cluster_size"]
USUAL = 16  # ids a cluster
PAIR = [*CONTEXT, "draft", "method", "finalize"]


def recalls(frame: DataFrame, *by: str) -> DataFrame:
    """One line per draft, head and plan for each value of `by`: what it reads, how often it agrees, what it covers."""
    table = frame[frame["kind"] != ""].assign(calibrated=frame["always"] > 0, share=100 * frame["rows_scored"] / frame["vocab"])
    table["megabytes"] = table["bytes"] / 1e6
    keys = ["target", "draft", "head", *CLUSTERING, "calibrated", "plan", "probes", "share", "megabytes"]
    sums = {name: (name, "sum") for name in ("positions", "agreed", "covered")}
    found = table.groupby([*keys, *by], sort=False).agg(**sums).reset_index()
    found["agreement"], found["coverage"] = (100 * found[name] / found["positions"] for name in ("agreed", "covered"))
    extra = found["calibrated"].map({True: ", calibrated", False: ""})
    return found.assign(name=found["head"] + extra)


def usual(table: DataFrame) -> DataFrame:
    """The lines of heads at their defaults and of FlashHeads of one clustering: the first, at about 16 ids per cluster."""
    flash = table[table["head"] == "flash"]
    if flash.empty:
        return table
    near = flash.assign(far=np.log2(flash["cluster_size"] / USUAL).abs()).sort_values("far", kind="stable").iloc[0]
    return table[(table["head"] != "flash") | having(table, near[CLUSTERING])]


def by_kind(frame: DataFrame) -> DataFrame:
    """The usual heads at their own probes: rows and megabytes they read, agreement on each kind of text, and coverage."""
    whole, kinds = (usual(recalls(frame, *by)) for by in ((), ("kind",)))
    table = whole[whole["plan"] == "default"][["draft", "name", "share", "megabytes", "agreement", "coverage"]]
    apart = pivoted(kinds[kinds["plan"] == "default"], ["draft", "name"], "kind", "agreement")
    return table.merge(apart, how="left") if len(apart.columns) > 3 else table


def costs(frame: DataFrame) -> DataFrame:
    """One line per piece and head: median milliseconds, megabytes, percentage of the memory's speed, and its gain over dense."""
    keys = [*PLACE, *SIZE]
    table = frame.groupby([*keys, "bytes", "bandwidth"], dropna=False, sort=False)["seconds"].median().reset_index()
    table["ms"], table["megabytes"] = table["seconds"] * 1e3, table["bytes"] / 1e6
    table["speed"] = 100 * table["bytes"] / table["bandwidth"] / table["seconds"]
    return table.merge(faster(frame), on=keys, how="left").assign(setting=settings(table))


def by_shape(table: DataFrame) -> DataFrame:
    """FlashHead with the most probes over the dense head of its format, times faster: ids down, widths across."""
    rows = table[(table["head"] == "flash") & (table["probes"] == table["probes"].max())]
    sides = rows["shape"].str.split("x", expand=True).reindex(columns=[0, 1]).astype(int)
    return pivoted(rows.assign(ids=sides[0], width=sides[1]), ["ids"], "width", "ratio")


def depths(frame: DataFrame) -> DataFrame:
    """One line per depth and head: the head's share of a dense step, the step's measured gain, and Amdahl's prediction."""
    lines = faster(frame)
    place = ["shape", "layers", *SIZE, "over"]
    cheaper = lines[lines["piece"] == "head"].set_index(place)["ratio"].rename("cheaper")
    dense = frame[frame["head"] == "dense"].pivot_table("seconds", ["shape", "layers", "format"], "piece", aggfunc="median")
    dense = dense.reindex(columns=["head", "body"])
    part = (dense["head"] / dense.sum(axis=1, skipna=False)).rename("part")
    lines = lines[lines["piece"] == "step"].join(cheaper, on=place).join(part, on=["shape", "layers", "over"])
    pairs = lines[["part", "cheaper"]].itertuples(index=False)
    predicted = [amdahl(*pair) if np.isfinite(pair).all() else np.nan for pair in pairs]
    return lines.assign(share=100 * lines["part"], predicted=predicted)


def builds(frame: DataFrame) -> DataFrame:
    """One line per timed clustering: the median minutes of its build."""
    keys = ["draft", "vocab", "hidden", "metric", "cluster_size"]
    seconds = frame[[f"{part}_seconds" for part in PARTS]].sum(axis=1, skipna=False)
    rows = frame.assign(minutes=seconds / 60).dropna(subset="minutes").drop_duplicates([*keys, "minutes"])
    return rows.groupby(keys, sort=False)["minutes"].median().reset_index()


def against(frame: DataFrame) -> DataFrame:
    """One line per head and sampling at its best setting: over plain decoding, the dense head of its format and the int8 head."""
    plain = speedups(frame, [*WHO, "finalize"])
    rows = frame[frame["method"] != "baseline"]
    same = like_for_like(frame)[[*PAIR, "head", "verdict"]].rename(columns={"verdict": "same_format"})
    int8 = gain(rows, {"head": "int8"}, PAIR, ["head"])[[*PAIR, "head", "verdict"]].rename(columns={"verdict": "over_int8"})
    found = plain.merge(same, on=[*PAIR, "head"], how="left").merge(int8, on=[*PAIR, "head"], how="left")
    return found.assign(name=settings(found))


def settings(table: DataFrame) -> Any:
    """What the head of each line is called with its number of probes or the length of its list."""
    names = table["head"].map(named).astype(str)
    for letter, column in (("P", "probes"), ("N", "shortlist")):
        names = names + table[column].map(lambda size, letter=letter: f", {letter} = {size:g}" if size else "").astype(str)
    return names


def by_share(frame: DataFrame) -> DataFrame:
    """One line per place that drafts with FlashHead: its gain over the dense head of its format, each at its best setting.

    `share` is the percentage of the dense side's time spent in the dense head while drafting; `kept` is the acceptance under
    FlashHead over that under the dense head. Both are NaN where parts were not timed or tokens not counted.
    """
    rows = frame[(frame["method"] != "baseline") & frame["head"].isin(["dense", "flash"])]
    place = [*PAIR, "format", "exits"]
    lines = like_for_like(rows, place)
    chosen = best(rows, [*place, "head"])
    counted = chosen.assign(scoring=chosen["drafted"] * chosen["head_seconds"])
    sums = counted.groupby([*place, "head"])[["scoring", "seconds", "accepted", "judged"]].sum(min_count=1)
    told = sums.assign(share=100 * sums["scoring"] / sums["seconds"], accepts=sums["accepted"] / sums["judged"]).unstack("head")
    told = told.reindex(columns=[("share", "dense"), ("accepts", "dense"), ("accepts", "flash")])
    found = framed({"share": told["share", "dense"], "kept": told["accepts", "flash"] / told["accepts", "dense"]})
    return lines.merge(found.reset_index(), on=place, how="left")

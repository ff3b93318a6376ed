"""Draft heads: what each covers and costs, what it gains under verification, and the effects of depth and building."""

from __future__ import annotations

import numpy as np

from flashspec.study.chain import PLACE, SIZE, faster
from flashspec.study.compare import CONTEXT, best, like_for_like
from flashspec.study.frames import DataFrame, framed, having, pivoted
from flashspec.study.quote import named
from flashspec.study.recall import TIMED
from flashspec.theory import amdahl

CLUSTERING = ["metric", "homes", "cluster_size"]
USUAL = 16  # ids a cluster
PAIR = [*CONTEXT, "draft", "method", "finalize"]


def recalls(frame: DataFrame, *by: str) -> DataFrame:
    """One line per draft, head and plan for each value of `by`: what it reads, how often it agrees, what it covers."""
    table = frame[frame["kind"] != ""].assign(calibrated=frame["always"] > 0, megabytes=frame["bytes"] / 1e6)
    table["share"] = 100 * table["rows_scored"] / table["vocab"]
    table["name"] = table["head"] + table["calibrated"].map({True: ", calibrated", False: ""})
    keys = ["target", "draft", "head", "name", *CLUSTERING, "calibrated", "plan", "probes", "share", "megabytes", *by]
    found = table.groupby(keys, sort=False)[["positions", "agreed", "covered"]].sum().reset_index()
    shares = {"agreement": found["agreed"], "coverage": found["covered"]}
    return found.assign(**{name: 100 * counts / found["positions"] for name, counts in shares.items()})


def usual(table: DataFrame) -> DataFrame:
    """The lines of heads at their defaults and of FlashHeads of one clustering: the first, at about 16 ids per cluster."""
    flash = table[table["head"] == "flash"]
    if flash.empty:
        return table
    near = flash.assign(far=np.log2(flash["cluster_size"] / USUAL).abs()).sort_values("far", kind="stable").iloc[0]
    return table[(table["head"] != "flash") | having(table, near[CLUSTERING])]


def by_kind(frame: DataFrame) -> DataFrame:
    """The usual heads at their own probes: rows and megabytes they read, agreement on each kind of text, and coverage."""
    whole, kinds = (usual(recalls(frame[frame["plan"] == "default"], *by)) for by in ((), ("kind",)))
    table = whole[["draft", "name", "share", "megabytes", "agreement", "coverage"]]
    apart = pivoted(kinds, ["draft", "name"], "kind", "agreement")
    return table.merge(apart, how="left") if len(apart.columns) > 3 else table


def costs(frame: DataFrame) -> DataFrame:
    """One line per piece and head: median milliseconds, megabytes, percentage of the memory's speed, and its gain over dense.

    `setting` is what the head is called with its number of probes or the length of its list.
    """
    keys = [*PLACE, *SIZE]
    table = frame.groupby([*keys, "bytes", "bandwidth"], dropna=False, sort=False)["seconds"].median().reset_index()
    names = table["head"].map(named).astype(str)
    for letter, column in (("P", "probes"), ("N", "shortlist")):
        sizes = table[column].map(f", {letter} = {{:g}}".format).astype(str)
        names = names + sizes.where(table[column] > 0, "")
    table = table.assign(ms=1e3 * table["seconds"], megabytes=table["bytes"] / 1e6, setting=names)
    table["speed"] = 100 * table["bytes"] / table["bandwidth"] / table["seconds"]
    return table.merge(faster(frame), on=keys, how="left")


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
    seconds = frame[list(TIMED[:3])].sum(axis=1, skipna=False)
    rows = frame.assign(minutes=seconds / 60).dropna(subset="minutes").drop_duplicates([*keys, "minutes"])
    return rows.groupby(keys, sort=False)["minutes"].median().reset_index()


def by_share(frame: DataFrame) -> DataFrame:
    """One line per place that drafts with FlashHead: its gain over the dense head of its format, each at its best setting.

    `share` is the percentage of the dense side's time spent in the dense head while drafting; `kept` is the acceptance under
    FlashHead over that under the dense head. Both are NaN where parts were not timed or tokens not counted.
    """
    rows = frame[(frame["method"] != "baseline") & frame["head"].isin(["dense", "flash"])]
    place = [*PAIR, "format", "exits"]
    chosen = best(rows.assign(scoring=rows["drafted"] * rows["head_seconds"]), [*place, "head"])
    sums = chosen.groupby([*place, "head"])[["scoring", "seconds", "accepted", "judged"]].sum(min_count=1).reset_index()
    dense, flash = (sums[sums["head"] == name].set_index(place) for name in ("dense", "flash"))
    accepts = [side["accepted"] / side["judged"] for side in (flash, dense)]
    found = framed({"share": 100 * dense["scoring"] / dense["seconds"], "kept": accepts[0] / accepts[1]})
    return like_for_like(rows, place).merge(found.reset_index(), on=place, how="left")

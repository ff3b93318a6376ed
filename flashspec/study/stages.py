"""Readings of races about stages: what each accepts and costs, which schedules are fast, and gains that add up or do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flashspec.study import compare
from flashspec.study.compare import CONTEXT, DENSE, PARTS, SETTING, WHO, gain, like_for_like, sampled, speedups
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame

PLACE = [*CONTEXT, "method", "draft", "exits", "k", "interval"]
CELL = ["head", "format", "finalize"]
COUNTS = [f"{name}_{i}" for name in ("kept", "decided") for i in (1, 2)]


def stages(frame: DataFrame, by: Sequence[str] = (*CONTEXT, *WHO)) -> DataFrame:
    """A line a method, head and draft at its best setting: ms of an emitted token by part and as timed, and what was accepted.

    `accepts_1` and `accepts_2` are accepted over judged tokens at the lowest verifier and the next; `check_ratio` is a middle
    check's time over a full one's; `layers` are layers computed a token over plain decoding's; `predicted` is over measured time.
    """
    rows, keys = compare.best(compare.rated(frame), by), list(by)
    rows = rows.assign(**compare.seconds_by_part(rows), check_ratio=rows["check_1_seconds"] / rows["check_2_seconds"])
    groups = rows.groupby(keys, dropna=False)
    priced = groups[[*PARTS, "seconds", "predicted_seconds"]].sum(skipna=False)
    counts = groups[["emitted", "layer_tokens", *COUNTS]].sum(min_count=1)
    chosen = [name for name in SETTING if name not in keys]
    table = groups[chosen].first().assign(**priced[list(PARTS)].mul(1e3).div(counts["emitted"], axis=0))
    table["ms"] = 1e3 * priced["seconds"] / counts["emitted"]
    table["tokens_per_second"] = counts["emitted"] / priced["seconds"]
    for i in (1, 2):
        table[f"accepts_{i}"] = counts[f"kept_{i}"] / counts[f"decided_{i}"].clip(lower=1)
    table["check_ratio"] = groups["check_ratio"].median()
    table["layers"] = counts["layer_tokens"] / counts["emitted"]
    table["predicted"] = priced["predicted_seconds"] / priced["seconds"]
    table = table.reset_index()
    plain = table[table["method"] == "baseline"].drop_duplicates(CONTEXT).set_index(CONTEXT)[["ms", "layers"]]
    over = table[CONTEXT].join(plain, on=CONTEXT)
    return sampled(table.assign(layers=table["layers"] / over["layers"], speedup=over["ms"] / table["ms"]))


def if_free(frame: DataFrame) -> DataFrame:
    """Speedups of every speculative method at its best setting, as it is and were one part of it free: measured time less it."""
    table = stages(frame)
    table = table[table["method"] != "baseline"]
    plain = table["speedup"] * table["ms"]
    return table.assign(**{f"{part} free": plain / (table["ms"] - table[part]) for part in ("drafting", "middle checks")})


def schedules(frame: DataFrame, method: str = "hispec") -> DataFrame:
    """Tokens a second of every schedule of a method over exits: the screening's runs, or timed ones where none was screened."""
    rows = frame[(frame["method"] == method) & (frame["head"].isin(DENSE)) & (frame["exits"] != "")]
    rows = rows[rows["screened"]] if rows["screened"].any() else rows
    sums = rows.groupby([*CONTEXT, "exits", "k", "interval"])[["emitted", "seconds"]].sum().reset_index()
    exits = sums["exits"].str.split(" ", expand=True).reindex(columns=[0, 1]).apply(lambda e: e.astype(float))
    return sums.assign(draft_exit=exits[0], verify_exit=exits[1], rate=sums["emitted"] / sums["seconds"])


def factors(frame: DataFrame) -> DataFrame:
    """What each change gives, all else equal, paired by prompt and turn: a line a place that drafts, a change and what it is at.

    An approximate head over the dense one of its format, a deferred final token over an eager one, and both together;
    `over_plain` is the side with the change over plain decoding, `product` what both would give if the single gains multiplied.
    """
    import pandas

    rows = frame[frame["method"] != "baseline"]
    dense, eager = rows["head"].isin(DENSE), rows["finalize"] == "eager"
    corners = rows.assign(corner=dense & eager)[(dense & eager) | ~(dense | eager)]
    found = {
        "head": like_for_like(rows, [*PLACE, "format", "finalize"]),
        "final token": gain(rows, {"finalize": "eager"}, [*PLACE, "format", "head"], ["finalize"]),
        "both": gain(corners, {"corner": True}, [*PLACE, "format"], ["head", "finalize"]),
    }
    table = pandas.concat([lines.assign(change=name) for name, lines in found.items()], ignore_index=True)
    return _with_products(_beside_plain(table, frame))


def _beside_plain(lines: DataFrame, frame: DataFrame) -> DataFrame:
    over = speedups(frame, [*PLACE[len(CONTEXT) :], *CELL])[[*PLACE, *CELL, "ratio"]].rename(columns={"ratio": "over_plain"})
    return lines.merge(over, on=[*PLACE, *CELL], how="left")


def _with_products(table: DataFrame) -> DataFrame:
    """The single gains multiplied, beside each gain of both: the head's over eager ones, deferral's under the dense head."""
    keys = [*PLACE, "format"]
    head = table[(table["change"] == "head") & (table["finalize"] == "eager")].set_index([*keys, "head"])["ratio"]
    token = table[(table["change"] == "final token") & table["head"].isin(DENSE)].drop_duplicates(keys).set_index(keys)["ratio"]
    beside = table.join(head.rename("by_head"), on=[*keys, "head"]).join(token.rename("by_token"), on=keys)
    return table.assign(product=(beside["by_head"] * beside["by_token"]).where(table["change"] == "both"))


def head_gains(frame: DataFrame) -> DataFrame:
    """The head's lines of `factors` with two predictions, and the share of the time that the dense head takes for drafts.

    `predicted` is from parts and counts; `by_share` is Amdahl's law: as if the approximate head's drafts were accepted as often.
    """
    keys = [*PLACE, "finalize", "format", "head", "probes", "shortlist"]
    rows = compare.rated(frame)
    rows = rows.assign(scoring=rows["drafted"] * rows["head_seconds"])
    sums = rows.groupby(keys, dropna=False)[["emitted", "drafted", "scoring", "predicted_seconds"]].sum(min_count=1).reset_index()
    lines = like_for_like(frame[frame["method"] != "baseline"], [*PLACE, "format", "finalize"])
    lines = _beside_plain(lines, frame).merge(sums, on=keys)
    dense = sums[sums["head"].isin(DENSE)].drop(columns=["head", "probes", "shortlist"])
    both = lines.merge(dense, on=keys[:-3], suffixes=("", "_dense"))
    a_token = both["predicted_seconds_dense"] / both["emitted_dense"] * both["emitted"]
    share = both["scoring_dense"] / both["predicted_seconds_dense"]
    faster = (both["scoring_dense"] / both["drafted_dense"]) / (both["scoring"] / both["drafted"])
    by_share = [amdahl(s, f) if s == s and f == f else np.nan for s, f in zip(share, faster, strict=True)]
    return both.assign(predicted=a_token / both["predicted_seconds"], share=share, by_share=by_share)

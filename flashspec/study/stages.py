"""Readings of races about stages: what each accepts and costs, which schedules are fast, and gains that add up or do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flashspec.study.compare import CONTEXT, DENSE, SETTING, WHO, best, gain, like_for_like, rated, speedups
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame

PARTS = ("drafting", "middle checks", "full checks", "reading the final token", "prompt and loop")
PLACE = [*CONTEXT, "method", "draft", "exits", "k", "interval"]
CELL = ["head", "format", "finalize"]


def spent(rows: DataFrame) -> DataFrame:
    """The rated rows with seconds by part: what a piece costs by itself times how many there were; NaN where not timed."""
    plain, deep = rows["method"] == "baseline", rows["actions_2"].notna()
    low, high = (rows[f"actions_{i}"] * rows[f"check_{i}_seconds"] for i in (1, 2))
    found = rows.assign(
        **{
            "drafting": (rows["drafted"] / rows["k"].where(rows["k"] > 0) * rows["burst_seconds"]).mask(plain, 0.0),
            "middle checks": low.where(deep, 0.0),
            "full checks": high.where(deep, low).mask(plain, rows["emitted"] * rows["step_seconds"]),
            "reading the final token": (rows["rounds"] * rows["finalize_seconds"]).where(rows["finalize"] == "eager", 0.0),
        }
    )
    found["prompt and loop"] = found["predicted_seconds"] - found[list(PARTS[:-1])].sum(axis=1, skipna=False)
    return found


def stages(frame: DataFrame) -> DataFrame:
    """A line a method, head and draft at its best setting: ms of an emitted token by part and as timed, and what was accepted.

    `accepts_1` and `accepts_2` are accepted over judged tokens at the lowest verifier and the next; `check_ratio` is a middle
    check's time over a full one's; `layers` are layers computed a token over plain decoding's; `predicted` is over measured time.
    """
    import pandas

    keys = [*CONTEXT, *WHO]
    rows = spent(best(rated(frame), keys))
    lines = [{**dict(zip(keys, values, strict=True)), **_line(mine)} for values, mine in rows.groupby(keys, dropna=False)]
    table = pandas.DataFrame(lines, columns=[*keys, *SETTING, *PARTS, "ms", *FACTS])
    plain = table[table["method"] == "baseline"].drop_duplicates(CONTEXT).set_index(CONTEXT)[["ms", "layers"]]
    over = table[CONTEXT].join(plain.add_prefix("plain_"), on=CONTEXT)
    return table.assign(layers=table["layers"] / over["plain_layers"], speedup=over["plain_ms"] / table["ms"])


FACTS = ("tokens_per_second", "accepts_1", "accepts_2", "check_ratio", "layers", "predicted")


def _line(rows: DataFrame) -> dict[str, Any]:
    emitted, seconds = rows["emitted"].sum(), rows["seconds"].sum()
    parts = {part: 1e3 * rows[part].sum(min_count=len(rows)) / emitted for part in PARTS}
    accepts = {f"accepts_{i}": rows[f"kept_{i}"].sum() / max(rows[f"decided_{i}"].sum(), 1) for i in (1, 2)}
    deep = rows["actions_2"].notna().all()
    return {
        **rows[SETTING].iloc[0],
        **parts,
        "ms": 1e3 * seconds / emitted,
        "tokens_per_second": emitted / seconds,
        "accepts_1": accepts["accepts_1"] if rows["actions_1"].notna().all() else np.nan,
        "accepts_2": accepts["accepts_2"] if deep else np.nan,
        "check_ratio": (rows["check_1_seconds"] / rows["check_2_seconds"]).median(),
        "layers": rows["layer_tokens"].sum(min_count=1) / emitted,
        "predicted": rows["predicted_seconds"].sum(min_count=len(rows)) / seconds,
    }


def if_free(frame: DataFrame) -> DataFrame:
    """Speedups of every speculative method at its best setting, as it is and were one part of it free: measured time less it."""
    table = stages(frame)
    table = table[table["method"] != "baseline"]
    return table.assign(**{f"{part} free": table["speedup"] * table["ms"] / (table["ms"] - table[part]) for part in PARTS[:3]})


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
    rows = rated(frame)
    rows["scoring"] = rows["drafted"] * rows["head_seconds"]
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

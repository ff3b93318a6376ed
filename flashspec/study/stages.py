"""Readings of races about stages: what each accepts and costs, and gains that add up or do not."""

from __future__ import annotations

from flashspec.study import compare
from flashspec.study.chain import SIDE
from flashspec.study.compare import CONTEXT, DENSE, PARTS, SETTING, gain, like_for_like, sampled, speedups
from flashspec.study.frames import DataFrame, joined

PLACE = [*CONTEXT, "method", "draft", "exits", "k", "interval"]
CELL = ["head", "format", "finalize"]
WHOLE = ["method", "draft", "exits", *CELL]
COUNTS = [f"{name}_{i}" for name in ("kept", "decided") for i in (1, 2)]


def stages(frame: DataFrame) -> DataFrame:
    """A line a method, head, draft and final token at its best setting: ms a token by part and as timed, what was accepted.

    `accepts_1` and `accepts_2` are accepted over judged tokens at the lowest verifier and the next; `check_ratio` is a middle
    check's time over a full one's; `predicted` is predicted over measured time.
    """
    rows = compare.seconds_by_part(compare.best(frame, SIDE))
    groups = rows.assign(check_ratio=rows["check_1_seconds"] / rows["check_2_seconds"]).groupby(SIDE, dropna=False)
    priced = groups[[*PARTS, "seconds"]].sum(skipna=False)
    counts = groups[["emitted", *COUNTS]].sum(min_count=1)
    table = priced.mul(1e3).div(counts["emitted"], axis=0).rename(columns={"seconds": "ms"})
    table = table.join(groups[[name for name in SETTING if name not in SIDE]].first())
    for i in (1, 2):
        table[f"accepts_{i}"] = counts[f"kept_{i}"] / counts[f"decided_{i}"].clip(lower=1)
    table["check_ratio"] = groups["check_ratio"].median()
    table["predicted"] = priced[list(PARTS)].sum(axis=1, skipna=False) / priced["seconds"]
    table = table.reset_index()
    plain = table[table["method"] == "baseline"].drop_duplicates(CONTEXT).set_index(CONTEXT)["ms"]
    return sampled(table.assign(speedup=table[CONTEXT].join(plain, on=CONTEXT)["ms"] / table["ms"]))


def factors(frame: DataFrame) -> DataFrame:
    """What each change gives, all else equal, paired by prompt and turn: a line a place that drafts, a change and what it is at.

    An approximate head over the dense one of its format, a deferred final token over an eager one, and both together;
    `over_plain` is the side with the change over plain decoding, `product` what both would give if the single gains multiplied.
    """
    rows = frame[frame["method"] != "baseline"]
    dense, eager = rows["head"].isin(DENSE), rows["finalize"] == "eager"
    corners = rows.assign(corner=dense & eager)[(dense & eager) | ~(dense | eager)]
    found = {
        "head": like_for_like(rows, [*PLACE, "format", "finalize"]),
        "final token": gain(rows, {"finalize": "eager"}, [*PLACE, "format", "head"], ["finalize"]),
        "both": gain(corners, {"corner": True}, [*PLACE, "format"], ["head", "finalize"]),
    }
    over = speedups(frame, [*PLACE[len(CONTEXT) :], *CELL])[[*PLACE, *CELL, "ratio"]].rename(columns={"ratio": "over_plain"})
    table = joined(lines.assign(change=name) for name, lines in found.items())
    return _with_products(table.merge(over, on=[*PLACE, *CELL], how="left"))


def _with_products(table: DataFrame) -> DataFrame:
    """The single gains multiplied, beside each gain of both: the head's over eager ones, deferral's under the dense head."""
    keys = [*PLACE, "format"]
    head = table[(table["change"] == "head") & (table["finalize"] == "eager")].set_index([*keys, "head"])["ratio"]
    token = table[(table["change"] == "final token") & table["head"].isin(DENSE)].drop_duplicates(keys).set_index(keys)["ratio"]
    beside = table.join(head.rename("by_head"), on=[*keys, "head"]).join(token.rename("by_token"), on=keys)
    return table.assign(product=(beside["by_head"] * beside["by_token"]).where(table["change"] == "both"))

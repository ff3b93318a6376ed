"""Tables to numbers: every rate, ratio and interval that a figure or a sentence shows is computed here, from raw repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flashspec.measure.bench import Interval, paired_ratio

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SETTING = ["draft", "finalize", "temperature", "rule"]
RUN = [*SETTING, "method", "k"]


class Missing(ValueError):
    """The table has no row for what was asked; the message says which."""


def where(frame: DataFrame, **values: Any) -> DataFrame:
    """The rows that have these values; Missing names what is missing if there is none."""
    kept = frame
    for column, value in values.items():
        kept = kept[kept[column] == value]
    if kept.empty:
        wanted = ", ".join(f"{column} = {value}" for column, value in values.items())
        raise Missing(f"the table has no row with {wanted}; run the experiment with parameters that include it")
    return kept


def ratio(above: Series, below: Series) -> Interval:
    """Median of above / below over the repeats both have, with its interval; no interval from fewer than three pairs."""
    both = above.index.intersection(below.index)
    if len(both) >= 3:
        return paired_ratio(list(above[both]), list(below[both]))
    return Interval(float((above[both] / below[both]).median()), math.nan, math.nan)


def by_repeat(frame: DataFrame, column: str) -> Series:
    """One value a repeat: the column summed over whatever else varies."""
    return frame.groupby("repeat")[column].sum()


def dense_heads(frame: DataFrame, shape: str) -> list[str]:
    """The dense heads measured at a shape, fastest first."""
    dense = where(frame, shape=shape)
    medians = dense[dense["probes"] == 0].groupby("head")["seconds"].median().sort_values()
    return list(medians.index)


def projection_gain(frame: DataFrame, shape: str, probes: int) -> Interval:
    """The fastest dense head's seconds over FlashHead's, paired by repeat."""
    rows = where(frame, shape=shape)
    dense = where(rows, head=dense_heads(frame, shape)[0])
    return ratio(by_repeat(dense, "seconds"), by_repeat(where(rows, head="flash", probes=probes), "seconds"))


def nearest_probes(frame: DataFrame, shape: str, probes: int) -> int:
    """The measured number of probes closest to the one asked for."""
    counts = where(frame, shape=shape, head="flash")["probes"].unique()
    return int(min(counts, key=lambda count: abs(count - probes)))


def step_gain(frame: DataFrame, shape: str, probes: int) -> Interval:
    """A draft step with the dense head over one with FlashHead, in seconds, paired by repeat."""
    rows = where(frame, shape=shape)
    return ratio(
        by_repeat(where(rows, head="dense"), "step_seconds"),
        by_repeat(where(rows, head="flash", probes=probes), "step_seconds"),
    )


def head_share(frame: DataFrame, shape: str) -> float:
    """Share of the dense draft step's parts that its head takes: median head over median body plus head."""
    rows = where(frame, shape=shape, head="dense")
    head, body = rows["head_seconds"].median(), rows["body_seconds"].median()
    return float(head / (head + body))


def roofline_seconds(frame: DataFrame) -> Series:
    """The least time in which each row's bytes can be read at the bandwidth measured in the same run."""
    return frame["bytes"] / frame["bandwidth"]


def runs(frame: DataFrame) -> DataFrame:
    """One line a run and repeat, prompts summed: whole numbers summed, then tokens/s, acceptance and TAR."""
    whole = ["rounds", "drafted", "accepted", "emitted", "forwards", "seconds"]
    table = frame.groupby([*RUN, "repeat"], dropna=False)[whole].sum().reset_index()
    table["throughput"] = table["emitted"] / table["seconds"]
    table["acceptance"] = table["accepted"] / table["drafted"].where(table["drafted"] > 0)
    table["tar"] = table["emitted"] / table["rounds"].where(table["rounds"] > 0)
    table["forwards_per_token"] = table["forwards"] / table["emitted"]
    return table


def medians(frame: DataFrame) -> DataFrame:
    """One line a run: medians over its repeats."""
    values = ["throughput", "acceptance", "tar", "forwards_per_token"]
    return runs(frame).groupby(RUN, dropna=False)[values].median().reset_index()


def best(frame: DataFrame, **setting: Any) -> DataFrame:
    """One line a method: the k with the highest median throughput in this setting."""
    table = where(medians(frame), **setting)
    return table.loc[table.groupby("method")["throughput"].idxmax()].set_index("method")


def seconds_of(frame: DataFrame, method: str, **setting: Any) -> Series:
    """Seconds per emitted token by repeat of a method at its best k in a setting."""
    chosen = best(frame, **setting).loc[method]
    rows = where(runs(frame), method=method, k=chosen["k"], **setting).set_index("repeat")
    return rows["seconds"] / rows["emitted"]


def baseline_seconds(frame: DataFrame, **setting: Any) -> Series:
    """Seconds per emitted token by repeat of decoding without a draft; it has no finalisation and no draft of its own."""
    rows = where(frame, method="baseline", temperature=setting["temperature"], rule=setting["rule"])
    sums = rows.groupby("repeat")[["seconds", "emitted"]].sum()
    return sums["seconds"] / sums["emitted"]


def method_gain(frame: DataFrame, above: str, below: str, **setting: Any) -> Interval:
    """How many times faster `above` runs than `below`, each at its best k, paired by repeat."""
    slow = baseline_seconds(frame, **setting) if below == "baseline" else seconds_of(frame, below, **setting)
    return ratio(slow, seconds_of(frame, above, **setting))


def deferral_gain(frame: DataFrame, method: str, **setting: Any) -> Interval:
    """Deferred over eager finalisation of one method, each at its best k, paired by repeat."""
    eager = seconds_of(frame, method, finalize="eager", **setting)
    return ratio(eager, seconds_of(frame, method, finalize="deferred", **setting))


def words(interval: Interval) -> str:
    """A ratio as a sentence carries it: its value and interval, and whether it shows a difference at all."""
    if math.isnan(interval.low):
        return f"{interval.value:.2f}× (too few repeats for an interval)"
    text = f"{interval.value:.2f}× ({interval.low:.2f} to {interval.high:.2f})"
    return text if interval.shows_difference else f"{text}, no difference shown"

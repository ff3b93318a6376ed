"""Tables to numbers: every rate, ratio and interval that a figure or a sentence shows is computed here, from raw repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flashspec.decoding.generate import Stats
from flashspec.measure.bench import Interval, Refused, paired_ratio
from flashspec.measure.parts import Parts, predicted_seconds
from flashspec.study.fairness import refusal

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SETTING = ["draft", "finalize", "temperature", "rule"]
RUN = [*SETTING, "method", "k", "probes"]


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


def bytes_ratio(frame: DataFrame, shape: str, probes: int) -> float:
    """Bytes that the fastest dense head reads over those that FlashHead reads."""
    rows = where(frame, shape=shape)
    dense = where(rows, head=dense_heads(frame, shape)[0])["bytes"].median()
    return float(dense / where(rows, head="flash", probes=probes)["bytes"].median())


def step_gain(frame: DataFrame, shape: str, probes: int) -> Interval:
    """A draft step with the dense head over one with FlashHead, in seconds, paired by repeat."""
    rows = where(frame, shape=shape)
    return ratio(
        by_repeat(where(rows, head="dense"), "step_seconds"),
        by_repeat(where(rows, head="flash", probes=probes), "step_seconds"),
    )


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
    """One line a method: the k and probes with the highest median throughput in this setting."""
    table = where(medians(frame), **setting)
    return table.loc[table.groupby("method")["throughput"].idxmax()].set_index("method")


Methods = str | tuple[str, ...]
DENSE = ("dense", "int8")


def fastest(frame: DataFrame, methods: Methods, **setting: Any) -> str:
    """The method itself, or of several the one with the highest median throughput in this setting among those measured."""
    if isinstance(methods, str):
        return methods
    rates = best(frame, **setting)["throughput"]
    return str(rates[[name for name in methods if name in rates.index]].idxmax())


def chosen_rows(frame: DataFrame, method: Methods, **setting: Any) -> DataFrame:
    """The rows of a method (of several, the fastest) at its best k and probes; plain decoding has neither, nor finalisation."""
    method = fastest(frame, method, **setting)
    if method == "baseline":
        return where(frame, method=method, **{name: setting[name] for name in ("draft", "temperature", "rule")})
    choice = best(frame, **setting).loc[method]
    return where(frame, method=method, k=choice["k"], probes=choice["probes"], **setting)


def method_gain(frame: DataFrame, above: Methods, below: Methods, **setting: Any) -> Interval:
    """How many times faster `above` runs than `below`, each at its best k and probes, paired by repeat.

    Raises Refused where texts or token counts differ without an explanation (`fairness.refusal`).
    """
    return fair_ratio(chosen_rows(frame, below, **setting), chosen_rows(frame, above, **setting), frame)


def deferral_gain(frame: DataFrame, method: Methods, **setting: Any) -> Interval:
    """Deferred over eager finalisation of one method, each at its best k, paired by repeat; refuses as `method_gain` does."""
    eager, deferred = (chosen_rows(frame, method, finalize=each, **setting) for each in ("eager", "deferred"))
    return fair_ratio(eager, deferred, frame)


def fair_ratio(below: DataFrame, above: DataFrame, frame: DataFrame) -> Interval:
    """Seconds below over seconds above by repeat, or Refused."""
    why = refusal(below, above, frame)
    if why:
        raise Refused(f"refused: {why}")
    return ratio(by_repeat(below, "seconds"), by_repeat(above, "seconds"))


def verdict(frame: DataFrame, above: Methods, below: Methods, **setting: Any) -> str:
    """The gain of `above` over `below` in words, or why none may be given."""
    try:
        return words(method_gain(frame, above, below, **setting))
    except (Refused, Missing) as error:
        return str(error)


def deferral_verdict(frame: DataFrame, method: Methods, **setting: Any) -> str:
    """The gain of deferring in words, or why none may be given."""
    try:
        return words(deferral_gain(frame, method, **setting))
    except (Refused, Missing) as error:
        return str(error)


def kept_share(frame: DataFrame, **setting: Any) -> float:
    """Accepted over drafted tokens of all rows in a setting."""
    rows = where(frame, **setting)
    return float(rows["accepted"].sum() / rows["drafted"].sum())


def rate(frame: DataFrame, method: Methods, **setting: Any) -> float:
    """Median tokens per second of a method at its best k in a setting."""
    rows = chosen_rows(frame, method, **setting)
    return float((by_repeat(rows, "emitted") / by_repeat(rows, "seconds")).median())


def predictions(frame: DataFrame) -> DataFrame:
    """One line a run and repeat: measured seconds, and those that parts and counts foretell (`measure.parts`)."""
    table = frame.assign(predicted=[foretold(row) for row in frame.itertuples()])
    return table.groupby([*RUN, "repeat"])[["seconds", "predicted", "emitted"]].sum().reset_index()


def foretold(row: Any) -> float:
    """Seconds that the parts measured in the same turn and the counts of this row foretell."""
    parts = Parts(row.draft_seconds, row.check_seconds, row.step_seconds, row.prefill_seconds, row.overhead_seconds)
    stats = Stats(row.rounds, row.drafted, row.drafted, row.accepted, row.emitted, row.forwards)
    return predicted_seconds(parts, stats, row.prompts, row.finalize == "eager" and row.method != "baseline")


def peer_rates(frame: DataFrame) -> DataFrame:
    """Tokens per second of each engine, mode, dtype, k and repeat, prompts summed."""
    sums = frame.groupby(["engine", "mode", "dtype", "k", "repeat"])[["emitted", "seconds"]].sum().reset_index()
    return sums.assign(rate=sums["emitted"] / sums["seconds"])


def peer_gain(frame: DataFrame, mode: str, dtype: str) -> Interval:
    """flashspec over transformers at the k that suits transformers best; Refused where texts differ without an explanation."""
    rows = where(frame, mode=mode, dtype=dtype)
    theirs = where(peer_rates(rows), engine="transformers").groupby("k")["rate"].median().idxmax()
    same = {"draft": "", "probes": 0, "finalize": "", "temperature": 0.0, "rule": "coupling"}
    known = rows[rows["k"] == theirs].assign(method=rows["engine"], kind=rows["prompt"].astype(str), **same)
    return fair_ratio(where(known, engine="transformers"), where(known, engine="flashspec"), known)


def peer_verdict(frame: DataFrame, mode: str, dtype: str) -> str:
    """The same in words, or why none may be given."""
    try:
        return words(peer_gain(frame, mode, dtype))
    except Refused as error:
        return str(error)


def words(interval: Interval) -> str:
    """A ratio as a sentence carries it: its value and interval, and whether it shows a difference at all."""
    if math.isnan(interval.low):
        return f"{interval.value:.2f}× (too few repeats for an interval)"
    text = f"{interval.value:.2f}× ({interval.low:.2f} to {interval.high:.2f})"
    return text if interval.shows_difference else f"{text}, no difference shown"

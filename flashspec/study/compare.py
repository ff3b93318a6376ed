"""Comparisons within a race's table: rates, the best setting of each side, and gains paired by prompt and turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flashspec.study.frames import DataFrame, framed, groups, having
from flashspec.theory import Interval

CONTEXT = ["target", "weights", "dtype", "engine", "temperature", "rule"]  # what two sides of a ratio share
UNIT = [*CONTEXT, "kind", "prompt"]  # intervals resample these
WHO = ["draft", "method", "head", "format"]
SIDE = [*CONTEXT, *WHO, "finalize"]
SETTING = ["k", "probes", "shortlist", "exits", "interval", "finalize"]  # what `best` chooses
DENSE = ("dense", "int8", "int4")  # heads that score every id
NUMBERS = ["ratio", "low", "high", "prompts", "same_text", "verdict"]
PAIRED = ["turn", "seconds", "emitted", "text_digest", "twin"]
FEWEST, MANY, DRAWS = 3, 16, 2000
NONE = Interval(np.nan, np.nan, np.nan)


def totals(rows: DataFrame, by: Sequence[str]) -> DataFrame:
    """Sums of each group of runs, with tokens per second (`rate`) and per check (`tar`)."""
    sums = rows.groupby(list(by), dropna=False)[["emitted", "seconds", "drafted", "accepted", "rounds"]].sum().reset_index()
    checks = sums["rounds"].where(sums["rounds"] > 0)
    return sums.assign(rate=sums["emitted"] / sums["seconds"], tar=1 + sums["accepted"] / checks)


def best(frame: DataFrame, by: Sequence[str] = (*CONTEXT, *WHO)) -> DataFrame:
    """The rows of the setting (k, probes, exits, ...) with the most tokens a second, in each group of these columns.

    A draft, method, head or format that is not among the columns is a part of the setting.
    """
    rows, keys = frame[~frame["screened"]], [*by, *(name for name in (*WHO, *SETTING) if name not in by)]
    ranked = totals(rows, keys).sort_values("rate", ascending=False, kind="stable")
    return rows.merge(ranked.drop_duplicates(list(by))[keys], on=keys)


def gain(frame: DataFrame, over: Mapping[str, Any], by: Sequence[str] = CONTEXT, each: Sequence[str] = WHO) -> DataFrame:
    """How many times faster every other side is than the side that `over` names, each at its best setting.

    One line for each group of `by` (shared by both sides) and each value of `each` on the other side; runs are paired by prompt
    and turn, and intervals are bootstrapped over prompts. A group without both sides gives no line. Plain decoding counts as
    another side only if `over` names an engine, a dtype or the like, or plain decoding itself.
    """
    rows = frame[~frame["screened"]]
    named = having(rows, over)
    below, above = rows[named], rows[~named]
    if not set(over) <= set(CONTEXT):
        above = above[above["method"] != "baseline"]
    by, unit = ([name for name in names if name not in over] for names in (by, UNIT))
    shared = [name for name in by if name in CONTEXT or not below["method"].eq("baseline").all()]
    keys = list(dict.fromkeys([*by, *each]))
    chosen = [name for name in SETTING if name not in keys]
    pairs = paired(best(above, keys), best(below, shared), list(dict.fromkeys([*unit, *shared])))
    lines = [{**facts, **mine[chosen].iloc[0], **over_prompts(mine, unit)} for facts, mine in groups(pairs, keys)]
    table = framed(lines, [*keys, *chosen, *NUMBERS])
    return table.astype({name: rows[name].dtype if name in rows else float for name in table if name != "verdict"})


def paired(above: DataFrame, below: DataFrame, on: Sequence[str]) -> DataFrame:
    """The runs of one side with those of the other in the same turn, whose seconds `below` are at as many tokens.

    Both must print plain decoding's text under exact methods, and a rule and temperature with one text per seed: `wrong` are
    those whose float32 twins do not.
    """
    both = owing(above).merge(owing(below)[[*on, *PAIRED]], on=[*on, "turn"], suffixes=("", "_below"))
    return both.assign(
        below=both["seconds_below"] * both["emitted"] / both["emitted_below"],
        same=(both["text_digest"] == both["text_digest_below"]) & (both["text_digest"] != ""),
        wrong=(both["twin"] != both["twin_below"]) & (both["twin"] != "") & (both["twin_below"] != ""),
    )


def owing(rows: DataFrame) -> DataFrame:
    """Runs with the digest of the float32 text that they must print, their `twin`; empty where they owe none."""
    owed = (rows["method"] != "hispec_typical") & ((rows["temperature"] == 0) | (rows["rule"] == "coupling"))
    return rows.assign(twin=rows["twin_digest"].where(owed, ""))


def over_prompts(pairs: DataFrame, unit: Sequence[str]) -> dict[str, Any]:
    """Ratio of summed seconds with its interval over prompts, how many prompts, the share of equal texts, and a verdict.

    No ratio is given where two runs must print the same text and their float32 twins do not.
    """
    how = {"seconds": "sum", "below": "sum", "prompts": "max", "same": "mean"}
    sums = pairs.groupby(list(unit), dropna=False).agg(how)
    prompts = int(sums["prompts"].sum())
    found = over(sums["below"], sums["seconds"], prompts=prompts)
    if pairs["wrong"].any():
        found = dict.fromkeys(found, np.nan) | {"verdict": "refused: the float32 twins give different texts"}
    return {**found, "prompts": prompts, "same_text": sums["same"].mean()}


def ratios(pairs: DataFrame, by: Sequence[str], statistic: Callable[..., Any] = np.sum) -> DataFrame:
    """One line per group of pairs: how many times `seconds` the `seconds_below` are, over turns as `over` says."""
    found = groups(pairs, by, sort=False)
    lines = [{**who, "turns": len(rows), **over(rows["seconds_below"], rows["seconds"], statistic)} for who, rows in found]
    return framed(lines, [*by, "turns", "ratio", "low", "high", "verdict"])


def over(below: Any, above: Any, statistic: Callable[..., Any] = np.sum, prompts: int | None = None) -> dict[str, Any]:
    """Ratio of a statistic of paired samples, its interval over the pairs (turns unless there are prompts), and both as text."""
    found = bootstrapped(lambda a, b, axis: statistic(a, axis) / statistic(b, axis), (below, above))
    words = f"{found.value:.2f}× ({found.low:.2f} to {found.high:.2f})"
    if len(below) < FEWEST:
        words = "too few turns" if prompts is None else "too few prompts"
    elif found.low <= 1.0 <= found.high:
        words = f"no difference shown, {words}"
    elif prompts is not None and prompts < MANY:
        words = f"{words}, few prompts"
    return {"ratio": found.value, "low": found.low, "high": found.high, "verdict": words}


def like_for_like(frame: DataFrame, by: Sequence[str] = (*CONTEXT, "draft", "method", "finalize", "format")) -> DataFrame:
    """Every approximate head over the dense head whose rows have the same number format, each at its best setting."""
    rows = frame.assign(dense=frame["head"].isin(DENSE))
    return gain(rows[rows["method"] != "baseline"], {"dense": True}, by, ["head"])


def speedups(frame: DataFrame, each: Sequence[str] = WHO) -> DataFrame:
    """Every method's best setting over plain decoding."""
    return gain(frame, {"method": "baseline"}, CONTEXT, each)


def spearman(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Rank correlation with its interval over the points; NaN for fewer than three."""
    from scipy.stats import rankdata

    def statistic(x: Any, y: Any, axis: int) -> Any:
        a, b = (rankdata(v, axis=axis) - (v.shape[axis] + 1) / 2 for v in (x, y))
        with np.errstate(invalid="ignore"):
            return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))

    return bootstrapped(statistic, (x, y)) if len(x) >= FEWEST else NONE


def bootstrapped(statistic: Callable[..., Any], samples: Sequence[Any]) -> Interval:
    """A statistic of paired samples with its 95 % percentile interval; seeded, no interval from fewer than three units."""
    from scipy.stats import bootstrap

    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) < FEWEST:
        return Interval(value, np.nan, np.nan)
    how = {"paired": True, "vectorized": True, "n_resamples": DRAWS, "random_state": np.random.default_rng(0)}
    drawn = bootstrap(arrays, statistic, method="percentile", **how).bootstrap_distribution
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def sampled(table: DataFrame) -> DataFrame:
    """A table by context, with a column `sampling`: greedy, or T = 1, speculative, and whatever else varies in the table.

    One that has such a column stays as it is.
    """
    if "sampling" in table:
        return table
    varied = [name for name in CONTEXT if name not in ("temperature", "rule") and table[name].nunique() > 1]
    warm = "T = " + table["temperature"].map("{:g}".format).astype(str) + ", " + table["rule"].astype(str)
    words = warm.mask(table["temperature"] == 0, "greedy")
    for name in varied:
        words = words + ", " + table[name].astype(str)
    return table.assign(sampling=words).sort_values(CONTEXT, kind="stable")

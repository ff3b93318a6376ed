"""Comparisons over what a race's table holds: rates, the best setting of each side, and gains paired by prompt and turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

CONTEXT = ["target", "weights", "dtype", "engine", "temperature", "rule"]  # what two sides of a ratio share
UNIT = [*CONTEXT, "kind", "prompt"]  # intervals resample these
WHO = ["draft", "method", "head", "format"]
SETTING = ["k", "probes", "shortlist", "exits", "interval", "finalize"]  # what `best` chooses
DENSE = ("dense", "int8", "int4")  # heads that score every id
NUMBERS = ["ratio", "low", "high", "prompts", "same_text", "verdict"]
FEWEST, MANY, DRAWS = 3, 16, 2000


class Estimate(NamedTuple):
    """A number with its 95 % interval (NaN from fewer than three units)."""

    value: float
    low: float
    high: float


def rated(frame: DataFrame) -> DataFrame:
    """The timed rows with tokens a second, acceptance, tokens a check, speedup over plain decoding, and predicted seconds.

    The speedup is over plain decoding of the same prompt in the same turn by the same engine, NaN where that is not in the table.
    """
    rows = frame[~frame["screened"]].copy()
    rows["throughput"] = rows["emitted"] / rows["seconds"]
    judged = rows["judged"].fillna(rows["drafted"])
    rows["acceptance"] = rows["accepted"] / judged.where(judged > 0)
    rows["tar"] = (rows["accepted"] + rows["rounds"]) / rows["rounds"].where(rows["rounds"] > 0)
    plain = rows[rows["method"] == "baseline"].drop_duplicates([*UNIT, "turn"]).set_index([*UNIT, "turn"])["throughput"]
    beside = rows[[*UNIT, "turn"]].join(plain.rename("plain"), on=[*UNIT, "turn"])["plain"]
    rows["speedup"] = rows["throughput"] / beside
    rows["predicted_seconds"] = predicted_seconds(rows)
    return rows


def predicted_seconds(rows: DataFrame) -> Any:
    """Seconds that parts and counts predict, row by row; NaN where parts were not timed. No whole run's clock is used."""
    return seconds_by_part(rows).sum(axis=1, skipna=False)


def seconds_by_part(rows: DataFrame) -> DataFrame:
    """Predicted seconds of each row by part: the prompt, plain steps, drafting, checks, eager final tokens, the loop."""
    import pandas

    plain = rows["method"] == "baseline"
    bursts = rows["drafted"] / rows["k"].where(rows["k"] > 0) * rows["burst_seconds"]
    checks = rows["actions_1"].fillna(rows["rounds"]) * rows["check_1_seconds"]
    checks += (rows["actions_2"] * rows["check_2_seconds"]).fillna(0.0)
    eager = rows["finalize_seconds"].where((rows["finalize"] == "eager") & ~plain, 0.0)
    parts = {
        "prompt": rows["prompts"] * rows["prefill_seconds"].fillna(0.0),
        "plain steps": (rows["emitted"] * rows["step_seconds"]).where(plain, 0.0),
        "drafting": bursts.where(~plain, 0.0),
        "check": checks.where(~plain, 0.0),
        "final token": (rows["rounds"] * eager).where(~plain, 0.0),
        "loop": rows["rounds"].where(~plain, rows["emitted"]) * rows["overhead_seconds"].fillna(0.0),
    }
    return pandas.DataFrame(parts)


def best(frame: DataFrame, by: Sequence[str] = (*CONTEXT, *WHO)) -> DataFrame:
    """The rows of the setting (k, probes, exits, ...) with the most tokens a second, in each group of these columns."""
    rows, chosen = frame[~frame["screened"]], [name for name in SETTING if name not in by]
    if rows.empty or not chosen:
        return rows
    sums = rows.groupby([*by, *chosen], dropna=False)[["emitted", "seconds"]].sum()
    rate = (sums["emitted"] / sums["seconds"]).rename("rate").reset_index()
    first = rate.sort_values("rate", ascending=False, kind="stable")
    top = (first.drop_duplicates(list(by)) if by else first.head(1))[[*by, *chosen]]
    return rows.merge(top, on=[*by, *chosen])


def gain(frame: DataFrame, over: Mapping[str, Any], by: Sequence[str] = CONTEXT, each: Sequence[str] = WHO) -> DataFrame:
    """How many times faster every other side runs than the side that `over` names, each at its best setting.

    One line for each group of `by` (which both sides share) and each value of `each` on the other side; runs are paired by
    prompt and turn, and intervals are bootstrapped over prompts. A group without both sides gives no line. Plain decoding is
    a side of its own where `over` names an engine, a dtype or the like, and otherwise only where `over` names it.
    """
    import pandas

    rows = frame[~frame["screened"]]
    named = np.logical_and.reduce([rows[column] == value for column, value in over.items()])
    below, above = rows[named], rows[~named]
    if not set(over) <= set(CONTEXT):
        above = above[above["method"] != "baseline"]
    by, unit = ([name for name in names if name not in over] for names in (by, UNIT))
    plain = below["method"].eq("baseline").all()
    shared = [name for name in by if name in CONTEXT] if plain else by
    keys = list(dict.fromkeys([*by, *each]))
    lines = []
    for values, mine in above.groupby(keys, dropna=False):
        facts = dict(zip(keys, values, strict=True))
        theirs = below[np.logical_and.reduce([below[name] == facts[name] for name in shared] or [np.ones(len(below), bool)])]
        top = best(mine, keys)
        pairs = paired(top, best(theirs, shared), unit)
        if len(pairs):
            setting = top[[name for name in SETTING if name not in keys]].iloc[0]
            lines.append({**facts, **setting, **over_pairs(pairs)})
    table = pandas.DataFrame(lines, columns=[*keys, *(name for name in SETTING if name not in keys), *NUMBERS])
    return table.astype({name: rows[name].dtype if name in rows else float for name in table if name != "verdict"})


def paired(above: DataFrame, below: DataFrame, unit: Sequence[str] = UNIT) -> DataFrame:
    """Seconds of both sides on each prompt in the turns that both have, the lower side's at the other's number of tokens."""
    columns = [*unit, "turn", "seconds", "emitted", "prompts", "text_digest"]
    sides = [rows[columns].assign(twin=rows["twin_digest"].where(owes_text(rows), "")) for rows in (above, below)]
    both = sides[0].merge(sides[1], on=[*unit, "turn"], suffixes=("", "_below"))
    both["below"] = both["seconds_below"] * both["emitted"] / both["emitted_below"]
    both["same"] = (both["text_digest"] == both["text_digest_below"]) & (both["text_digest"] != "")
    both["wrong"] = (both["twin"] != both["twin_below"]) & (both["twin"] != "") & (both["twin_below"] != "")
    sums = {"above": ("seconds", "sum"), "below": ("below", "sum"), "prompts": ("prompts", "max")}
    return both.groupby(list(unit), dropna=False).agg(**sums, same=("same", "mean"), wrong=("wrong", "any")).reset_index()


def owes_text(rows: DataFrame) -> Any:
    """Which runs owe plain decoding's text: those of exact methods where rule and temperature promise one text a seed."""
    return (rows["method"] != "hispec_typical") & ((rows["temperature"] == 0) | (rows["rule"] == "coupling"))


def over_pairs(pairs: DataFrame) -> dict[str, Any]:
    """Ratio of summed seconds with its interval over prompts, how many prompts, the share of equal texts, and a verdict.

    No ratio is given where the float32 twins of two runs that owe one text give different ones.
    """
    found = bootstrapped(lambda below, above, axis: below.sum(axis) / above.sum(axis), (pairs["below"], pairs["above"]))
    prompts = int(pairs["prompts"].sum())
    said = verdict(found, len(pairs), prompts)
    if pairs["wrong"].any():
        found, said = Estimate(np.nan, np.nan, np.nan), "refused: the float32 twins give different texts"
    return dict(zip(NUMBERS, (*found, prompts, pairs["same"].mean(), said), strict=True))


def like_for_like(frame: DataFrame, by: Sequence[str] = (*CONTEXT, "draft", "method", "finalize", "format")) -> DataFrame:
    """Every approximate head over the dense head whose rows have the same number format, each at its best setting."""
    rows = frame.assign(dense=frame["head"].isin(DENSE))
    return gain(rows[rows["method"] != "baseline"], {"dense": True}, by, ["head"])


def speedups(frame: DataFrame, each: Sequence[str] = WHO) -> DataFrame:
    """Every method's best setting over plain decoding."""
    return gain(frame, {"method": "baseline"}, CONTEXT, each)


def shown(frame: DataFrame) -> DataFrame:
    """Every method's best setting over plain decoding, without the columns in which nothing differs."""
    found = speedups(frame)
    varied = [name for name in found.columns if name in NUMBERS or found[name].nunique(dropna=False) > 1]
    return found[varied].drop(columns=["ratio", "low", "high"]).rename(columns={"verdict": "speedup over plain decoding"})


def verdict(found: Estimate, units: int, prompts: int) -> str:
    """A ratio in a few words: its interval, or that none is shown, or that there are too few prompts to say."""
    if units < FEWEST:
        return "too few prompts"
    words = f"{found.value:.2f}× ({found.low:.2f} to {found.high:.2f})"
    if found.low <= 1.0 <= found.high:
        return f"no difference shown, {words}"
    return words if prompts >= MANY else f"{words}, few prompts"


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Rank correlation with its interval over the points."""
    from scipy.stats import rankdata, spearmanr

    def statistic(x: Any, y: Any, axis: int) -> Any:
        a, b = (rankdata(v, axis=axis) for v in (x, y))
        a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
        with np.errstate(invalid="ignore"):
            return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))

    if len(x) < FEWEST:
        return Estimate(np.nan, np.nan, np.nan)
    return bootstrapped(statistic, (x, y))._replace(value=float(spearmanr(x, y).statistic))


def bootstrapped(statistic: Callable[..., Any], samples: Sequence[Any]) -> Estimate:
    """A statistic of paired samples with its 95 % percentile interval; seeded, no interval from fewer than three units."""
    from scipy.stats import bootstrap

    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) < FEWEST:
        return Estimate(value, np.nan, np.nan)
    how = {"paired": True, "vectorized": True, "n_resamples": DRAWS, "random_state": np.random.default_rng(0)}
    drawn = bootstrap(arrays, statistic, method="percentile", **how).bootstrap_distribution
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def contexts(table: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """The lines that share a context, under a name that tells what varies in the table: greedy, or T = 1, speculative."""
    varied = [name for name in CONTEXT if name not in ("temperature", "rule") and table[name].nunique() > 1]
    for values, lines in table.groupby(CONTEXT, dropna=False):
        facts = dict(zip(CONTEXT, values, strict=True))
        sampling = f"T = {facts['temperature']:g}, {facts['rule']}" if facts["temperature"] else "greedy"
        yield ", ".join([sampling, *(str(facts[name]) for name in varied)]), lines

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
PARTS = ("prompt", "plain steps", "drafting", "middle checks", "full checks", "final token", "loop")
FEWEST, MANY, DRAWS = 3, 16, 2000


class Estimate(NamedTuple):
    """A number with its 95 % interval (NaN from fewer than three units)."""

    value: float
    low: float
    high: float

    @property
    def columns(self) -> dict[str, float]:
        """The three numbers as tables name them."""
        return {"ratio": self.value, "low": self.low, "high": self.high}


NONE = Estimate(np.nan, np.nan, np.nan)


def rated(frame: DataFrame) -> DataFrame:
    """The timed rows with their speedup over plain decoding, and predicted seconds.

    The speedup is over plain decoding of the same prompt in the same turn by the same engine, NaN where that is not in the table.
    """
    rows = frame[~frame["screened"]]
    turn = [*UNIT, "turn"]
    rows = rows.assign(rate=rows["emitted"] / rows["seconds"], predicted_seconds=predicted_seconds(rows))
    plain = rows[rows["method"] == "baseline"].drop_duplicates(turn).set_index(turn)["rate"].rename("plain")
    return rows.assign(speedup=rows["rate"] / rows.join(plain, on=turn)["plain"])


def predicted_seconds(rows: DataFrame) -> Any:
    """Seconds that parts and counts predict, row by row; NaN where parts were not timed. No whole run's clock is used."""
    return seconds_by_part(rows).sum(axis=1, skipna=False)


def seconds_by_part(rows: DataFrame) -> DataFrame:
    """Predicted seconds of each row by part: what each of PARTS costs alone times how many there were."""
    import pandas

    plain, deep = rows["method"] == "baseline", rows["actions_2"].notna()
    low, high = (rows[f"actions_{i}"] * rows[f"check_{i}_seconds"] for i in (1, 2))
    low = low.fillna(rows["rounds"] * rows["check_1_seconds"])
    eager = rows["finalize_seconds"].where(rows["finalize"] == "eager", 0.0)
    parts = {
        "prompt": rows["prompts"] * rows["prefill_seconds"].fillna(0.0),
        "plain steps": (rows["emitted"] * rows["step_seconds"]).where(plain, 0.0),
        "drafting": (rows["drafted"] / rows["k"].where(rows["k"] > 0) * rows["burst_seconds"]).mask(plain, 0.0),
        "middle checks": low.where(deep & ~plain, 0.0),
        "full checks": high.where(deep, low).mask(plain, 0.0),
        "final token": (rows["rounds"] * eager).mask(plain, 0.0),
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
    named = having(rows, over)
    below, above = rows[named], rows[~named]
    if not set(over) <= set(CONTEXT):
        above = above[above["method"] != "baseline"]
    by, unit = ([name for name in names if name not in over] for names in (by, UNIT))
    shared = [name for name in by if name in CONTEXT] if below["method"].eq("baseline").all() else by
    keys = list(dict.fromkeys([*by, *each]))
    chosen = [name for name in SETTING if name not in keys]
    lines = []
    for facts, mine in groups(above, keys):
        theirs = below[having(below, {name: facts[name] for name in shared})]
        top = best(mine, keys)
        pairs = paired(top, best(theirs, shared), unit)
        if len(pairs):
            lines.append({**facts, **top[chosen].iloc[0], **over_pairs(pairs)})
    table = pandas.DataFrame(lines, columns=[*keys, *chosen, *NUMBERS])
    return table.astype({name: rows[name].dtype if name in rows else float for name in table if name != "verdict"})


def groups(table: DataFrame, by: Sequence[str], sort: bool = True) -> Iterator[tuple[dict[str, Any], DataFrame]]:
    """What the lines of each group share, by column, and the lines."""
    for values, lines in table.groupby(list(by), dropna=False, sort=sort):
        yield dict(zip(by, values, strict=True)), lines


def having(table: DataFrame, values: Mapping[str, Any]) -> Any:
    """Which lines of a table have these values."""
    return np.logical_and.reduce([table[name] == value for name, value in values.items()] or [np.ones(len(table), bool)])


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
    found, prompts = over_sums(pairs["below"], pairs["above"]), int(pairs["prompts"].sum())
    said = verdict(found, len(pairs), prompts)
    if pairs["wrong"].any():
        found, said = NONE, "refused: the float32 twins give different texts"
    return {**found.columns, "prompts": prompts, "same_text": pairs["same"].mean(), "verdict": said}


def over_sums(below: Any, above: Any) -> Estimate:
    """Ratio of the sums of paired samples, with its interval over the pairs."""
    return bootstrapped(lambda a, b, axis: a.sum(axis) / b.sum(axis), (below, above))


def over_medians(below: Any, above: Any) -> Estimate:
    """Ratio of the medians of paired samples, with its interval over the pairs."""
    return bootstrapped(lambda a, b, axis: np.median(a, axis) / np.median(b, axis), (below, above))


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
        return NONE
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


def sampled(table: DataFrame) -> DataFrame:
    """A table by context, with a column that tells it: greedy, or T = 1, speculative, and what else varies in the table."""
    varied = [name for name in CONTEXT if name not in ("temperature", "rule") and table[name].nunique() > 1]
    warm = "T = " + table["temperature"].map("{:g}".format).astype(str) + ", " + table["rule"].astype(str)
    words = warm.mask(table["temperature"] == 0, "greedy")
    for name in varied:
        words = words + ", " + table[name].astype(str)
    return table.assign(sampling=words).sort_values(CONTEXT, kind="stable")

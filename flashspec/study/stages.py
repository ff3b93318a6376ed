"""Readings about rounds: what each stage accepts and costs, what parts and counts predict, and whether gains add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flashspec.study import compare
from flashspec.study.compare import CONTEXT, DENSE, SETTING, SIDE, UNIT, WHO, best, gain, like_for_like, paired, sampled, speedups
from flashspec.study.frames import DataFrame, framed, groups, joined
from flashspec.theory import scheduled

PARTS = ("prompt", "plain steps", "drafting", "middle checks", "full checks", "final token", "loop")
PLACE = [*CONTEXT, "method", "draft", "exits", "k", "interval"]
CELL = ["head", "format", "finalize"]
WHOLE = ["method", "draft", "exits", *CELL]
JUDGED = [f"{name}_{i}" for name in ("kept", "decided") for i in (1, 2)]
RUN = [*CONTEXT, *WHO, *SETTING]
NEAR = 3  # percent that a picked k may lose
COUNTS = ["rounds", "drafted", "actions_1", "actions_2"]
SUMS = ["seconds", "emitted", "prompts", "predicted", "own", "plain", "plain_predicted"]


def predicted_seconds(rows: DataFrame) -> Any:
    """Seconds that parts and counts predict, row by row; NaN where parts were not timed. No whole run's clock is used."""
    return seconds_by_part(rows)[list(PARTS)].sum(axis=1, skipna=False)


def seconds_by_part(rows: DataFrame) -> DataFrame:
    """The rows with predicted seconds of each part: what each of PARTS costs alone times how many there were."""
    plain, deep = rows["method"] == "baseline", rows["actions_2"].notna()
    low, high = (rows[f"actions_{i}"] * rows[f"check_{i}_seconds"] for i in (1, 2))
    low = low.fillna(rows["rounds"] * rows["check_1_seconds"])
    drafting = {
        "drafting": rows["drafted"] / rows["k"].where(rows["k"] > 0) * rows["burst_seconds"],
        "middle checks": low.where(deep, 0.0),
        "full checks": high.where(deep, low),
        "final token": rows["rounds"] * rows["finalize_seconds"].where(rows["finalize"] == "eager", 0.0),
    }
    always = {
        "prompt": rows["prompts"] * rows["prefill_seconds"].fillna(0.0),
        "plain steps": (rows["emitted"] * rows["step_seconds"]).where(plain, 0.0),
        "loop": rows["rounds"].where(~plain, rows["emitted"]) * rows["overhead_seconds"].fillna(0.0),
    }
    return rows.assign(**always, **{part: seconds.mask(plain, 0.0) for part, seconds in drafting.items()})


def stages(frame: DataFrame) -> DataFrame:
    """One line per method, head, draft and final token at its best setting: ms per token by part and as timed, and acceptance.

    `accepts_1` and `accepts_2` are accepted over checked tokens at the lowest verifier and the next; `check_ratio` is a middle
    check's time over a full one's; `predicted` is predicted over measured time.
    """
    rows = seconds_by_part(best(frame, SIDE))
    runs = rows.assign(check_ratio=rows["check_1_seconds"] / rows["check_2_seconds"]).groupby(SIDE, dropna=False)
    priced, counts = runs[[*PARTS, "seconds"]].sum(skipna=False), runs[["emitted", *JUDGED]].sum(min_count=1)
    table = priced.mul(1e3).div(counts["emitted"], axis=0).rename(columns={"seconds": "ms"})
    table = table.join(runs[[name for name in SETTING if name not in SIDE]].first())
    table["check_ratio"] = runs["check_ratio"].median()
    table["predicted"] = table[list(PARTS)].sum(axis=1, skipna=False) / table["ms"]
    for i in (1, 2):
        table[f"accepts_{i}"] = counts[f"kept_{i}"] / counts[f"decided_{i}"].clip(lower=1)
    table = table.reset_index()
    plain = table[table["method"] == "baseline"].drop_duplicates(CONTEXT).set_index(CONTEXT)["ms"]
    return sampled(table.assign(speedup=table[CONTEXT].join(plain, on=CONTEXT)["ms"] / table["ms"]))


def schedules(frame: DataFrame) -> DataFrame:
    """One line per place that drafts at an exit: the cost model applied to its parts and its acceptance (HiSpec, section 3).

    `draft`, `check_1` and `check_2` are times of a drafted token and of checks over a plain step, `alpha_1` and `alpha_2` the
    chances that a waiting token is accepted if all before it are. `predicted` is the speedup over plain decoding of the best
    `schedule` (tokens that wait for each verifier), `free` that with free checks except the last, `even` the acceptance at
    every verifier with which the best schedule would be as fast as plain decoding.
    """
    keys = [*CONTEXT, "method", "exits", "head"]
    lines = rounds(frame[frame["exits"] != ""], keys).rename(columns={"token": "draft"}).to_dict("records")
    for line in lines:
        levels = [i for i in (1, 2) if line[f"check_{i}"] == line[f"check_{i}"]]
        draft, checks, alphas = line["draft"], *([line[f"{name}_{i}"] for i in levels] for name in ("check", "alpha"))
        line["predicted"], schedule = scheduled(draft, checks, alphas)
        line["free"], _ = scheduled(draft, [0.0] * (len(checks) - 1) + checks[-1:], alphas)
        line |= {"schedule": " ".join(map(str, schedule)), "even": evened(draft, checks)}
    names = ["draft", "check_1", "check_2", "alpha_1", "alpha_2", "schedule", "predicted", "free", "even"]
    return sampled(framed(lines).reindex(columns=[*keys, *names]))


def rounds(frame: DataFrame, keys: list[str]) -> DataFrame:
    """One line per group of runs whose parts were timed: what a round is made of, over a plain step of `step` seconds.

    `token` is a drafted token's time, `scores` its head's, `check_1` and `check_2` those of a check by each verifier, `finalize`
    that of reading the final token; `alpha_1` and `alpha_2` are the chances that a waiting token is accepted if all before it
    are, and `waiting` tokens wait for the last verifier.
    """
    rows = frame[~frame["screened"] & frame["burst_seconds"].notna()]
    times = {name: rows[f"{name}_seconds"] for name in ("check_1", "check_2", "finalize")}
    times |= {"token": rows["burst_seconds"] / rows["k"], "scores": rows["head_seconds"]}
    found = rows.assign(**{name: time / rows["step_seconds"] for name, time in times.items()}).groupby(keys, dropna=False)
    sums = found[[*JUDGED, "judged", "rounds"]].sum()
    shares = {f"alpha_{i}": sums[f"kept_{i}"] / sums[f"decided_{i}"] for i in (1, 2)}
    step, waiting = found["step_seconds"].median(), sums["judged"] / sums["rounds"]
    return found[list(times)].median().assign(**shares, step=step, waiting=waiting).reset_index()


def evened(draft: float, checks: Sequence[float]) -> float:
    """The acceptance at every verifier with which the best schedule settles one token a unit of time; NaN where none does."""
    from scipy.optimize import brentq

    def spare(alpha: float) -> float:
        return scheduled(draft, checks, [alpha] * len(checks))[0] - 1

    if spare(1.0) < 0:
        return float("nan")
    return float(brentq(spare, 0.0, 1.0)) if spare(0.0) < 0 else 0.0


def factors(frame: DataFrame) -> DataFrame:
    """The gain of each change, all else equal, paired by prompt and turn: one line per place that drafts, change and level.

    An approximate head over the dense one of its format, a deferred final token over an eager one, and both together;
    `over_plain` is the side with the change over plain decoding, `product` what both would give if the single gains multiplied:
    the head's over an eager token, the token's under the dense head.
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
    table = table.merge(over, on=[*PLACE, *CELL], how="left")
    keys = [*PLACE, "format"]
    by_head = table[(table["change"] == "head") & (table["finalize"] == "eager")].set_index([*keys, "head"])["ratio"]
    by_token = table[(table["change"] == "final token") & table["head"].isin(DENSE)].drop_duplicates(keys)
    by_token = by_token.set_index(keys)["ratio"]
    beside = table.join(by_head.rename("by_head"), on=[*keys, "head"]).join(by_token.rename("by_token"), on=keys)
    return table.assign(product=(beside["by_head"] * beside["by_token"]).where(table["change"] == "both"))


def effects(frame: DataFrame) -> DataFrame:
    """Main effects and interactions of a race in which every place that drafts ran with every head and final token.

    A main effect is how many times faster a level is than the base of its factor (the dense head, the eager token, the first
    place), the geometric mean over the levels of the other factors; an interaction is how many times larger that becomes at
    another level of another factor. Intervals are over prompts.
    """
    rows = best(frame[frame["method"] != "baseline"], [*CONTEXT, "method", "draft", "exits", "head", "finalize"])
    place = (rows["draft"].where(rows["draft"] != "", rows["method"]) + " " + rows["exits"]).str.strip()
    rows, lines = rows.assign(place=place, speed=np.log(rows["emitted"] / rows["seconds"])), list[dict[str, Any]]()
    base = {"head": "dense", "finalize": "eager", "place": place.iloc[0] if len(place) else ""}
    for facts, mine in groups(rows, CONTEXT):
        cells = mine.pivot_table("speed", ["kind", "prompt"], list(base))
        found = {name: cells.columns.unique(name) for name in base}
        levels = [(name, level) for name in base for level in found[name] if level != base[name]]
        for number, one in enumerate(levels if all(base[name] in found[name] for name in base) else []):
            for more in ([], *([other] for other in levels[number + 1 :] if other[0] != one[0])):
                gained = cells
                for name, level in [one, *more]:
                    gained = gained.xs(level, axis=1, level=name) - gained.xs(base[name], axis=1, level=name)
                at = more[0][1] if more else ""
                lines.append({**facts, "effect": one[1], "at": at, **_geometric(gained)})
    return framed(lines, [*CONTEXT, "effect", "at", "ratio", "low", "high", "prompts", "verdict"])


def _geometric(gained: DataFrame) -> dict[str, Any]:
    """The mean of logarithms of gains, over columns and prompts, as a ratio with its interval over prompts."""
    each = np.exp(gained.mean(axis=1).dropna())
    found = compare.over(each, np.ones(len(each)), lambda values, axis: np.exp(np.log(values).mean(axis)), len(each))
    return {**found, "prompts": len(each)}


def predictions(frame: DataFrame) -> DataFrame:
    """One line per setting and half of its prompts: seconds measured, and predicted from the other half's counts.

    Prompts are dealt to the halves in turns, kind after kind; parts are those timed between the runs. `own` are seconds
    predicted from the runs' own counts, so that only the parts can be wrong. `plain` are the seconds of plain decoding in the
    same turns, `plain_predicted` those that its parts predict. Settings on a single prompt, and runs whose parts were not
    timed, are left out.
    """
    rows = frame[~frame["screened"]]
    rows = rows.assign(own=predicted_seconds(rows))
    plain = rows["method"] == "baseline"
    beside = rows.loc[plain, [*UNIT, "turn", "seconds", "own"]].rename(columns={"seconds": "plain", "own": "plain_predicted"})
    rows = rows[~plain & rows[["burst_seconds", "check_1_seconds", "rounds"]].notna().all(axis=1)]
    rows = rows.merge(beside, on=[*UNIT, "turn"])
    dealt = rows.groupby(["kind", "prompt"]).ngroup().groupby([rows[name] for name in RUN], dropna=False).rank("dense")
    rows = rows.assign(half=dealt.astype(int) % 2)
    sides = ([*RUN, "half"], RUN)
    mine, whole = (rows.groupby(side, dropna=False)[[*COUNTS, "emitted"]].transform("sum", min_count=1) for side in sides)
    other = (whole - mine)[whole["emitted"] > mine["emitted"]]
    rows = rows.loc[other.index]
    expected = {name: rows["emitted"] * other[name] / other["emitted"] for name in COUNTS}
    rows = rows.assign(predicted=predicted_seconds(rows.assign(**expected)))
    return rows.groupby([*RUN, "half"], dropna=False)[SUMS].sum().reset_index()


def errors(table: DataFrame) -> DataFrame:
    """How far predictions are off, in percent, over all runs and at each temperature.

    `median`, `most` (95 % of the runs are within) and `bias` are of the measured seconds, `own_median` and `own_most` of these
    from the runs' own counts; `gain_median` and `gain_most` of the speedup over plain decoding in the same turns, where a
    machine's changes of pace cancel out.
    """
    gains = (table["plain_predicted"] / table["predicted"]) / (table["plain"] / table["seconds"])
    ratios = {"": table["predicted"] / table["seconds"], "own_": table["own"] / table["seconds"], "gain_": gains}
    off = framed({prefix: 100 * (ratio - 1) for prefix, ratio in ratios.items()})
    lines = []
    for name, rows in [("all runs", off), *off.groupby("temperature = " + table["temperature"].astype(str))]:
        line = {"runs of": name, "runs": len(rows), "bias": rows[""].median()}
        for prefix, sizes in rows.abs().items():
            line |= {f"{prefix}median": sizes.median(), f"{prefix}most": sizes.quantile(0.95)}
        lines.append(line)
    return framed(lines)


def picks(table: DataFrame) -> DataFrame:
    """What the model's k loses against the fastest k in percent of tokens per second, by draft and head: both halves' mean.

    `mean` and `worst` of these losses, and how many percent of them are at most NEAR. Drafts and heads that ran at one k are
    left out.
    """
    keys = [name for name in RUN if name != "k"]
    table = table[table.groupby(keys, dropna=False)["k"].transform("nunique") > 1]
    table = table.assign(rate=table["emitted"] / table["seconds"], cost=table["predicted"] / table["emitted"])
    halves = table.groupby([*keys, "half"], dropna=False)
    table = table.assign(loss=100 * (1 - table["rate"] / halves["rate"].transform("max")))
    lost = table.loc[halves["cost"].idxmin()].groupby(keys, dropna=False)["loss"].mean()
    facts = {"settings": len(lost), "near": 100 * (lost <= NEAR).mean(), "mean": lost.mean(), "worst": lost.max()}
    return framed([facts] if len(lost) else [], list(facts))


def paying(frame: DataFrame) -> float:
    """Percent of the speculative runs that are faster than plain decoding of the same prompts in the same turn."""
    rows = frame[~frame["screened"]]
    plain = rows["method"] == "baseline"
    pairs = paired(rows[~plain], rows[plain], UNIT)
    return float(100 * (pairs["below"] > pairs["seconds"]).mean())

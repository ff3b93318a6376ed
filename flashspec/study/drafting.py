"""Readings about drafts: how fast each is, whether the better language model drafts better, and what a step costs by shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flashspec.models.family import DESIGNED, TOLERANCE
from flashspec.study.compare import CONTEXT, NONE, best, gain, over, spearman, speedups
from flashspec.study.drafts import point_of_designed
from flashspec.study.frames import DataFrame, framed, groups, joined
from flashspec.theory import Interval
from flashspec.theory.rounds import acceptance_for

NEAR = 4  # TAR is compared at the k nearest to this one
FEWEST = 5  # drafts that a rank correlation needs
MERITS = {"perplexity": -1, "right": 1, "chosen": 1, "tar": 1, "layers": -1, "body": -1}  # the sign of better
WORDS = {
    "right": "best tokens right", "chosen": "continuations found", "tar": "tokens a check", "rate": "tokens a second",
    "layers": "fewer layers", "body": "smaller body", "perplexity": "lower perplexity",
}  # fmt: skip
ITSELF = ["positions", "loss", "right", "asked", "chosen"]
KEYS = [*CONTEXT, "draft"]
SAME = ["base", "head", "format", "probes", "shortlist", "past", "device"]  # what shapes on one line share
SHAPE = [*SAME, "shape", "layers", "hidden", "body"]


def drafted(frame: DataFrame) -> DataFrame:
    """The timed runs with a draft model; a draft that ran under two names counts once."""
    names = set(frame["draft"])
    twice = DESIGNED if {DESIGNED, point_of_designed()} <= names else ""
    return frame[~frame["draft"].isin(["", twice]) & ~frame["screened"]]


def pace(frame: DataFrame) -> DataFrame:
    """One line per draft and context: tokens per second at its best setting, and tokens per check at the k nearest to NEAR."""
    rows = drafted(frame)
    sums = best(rows, KEYS).groupby(KEYS)[["emitted", "seconds"]].sum()
    apart = (rows["k"] - NEAR).abs()
    near = rows[apart == apart.groupby([rows[name] for name in KEYS]).transform("min")]
    kept = near.groupby(KEYS)[["accepted", "rounds"]].sum()
    shape = rows.groupby(KEYS)[["layers", "body", "head_bytes", "steps"]].first()
    tar = (kept["accepted"] + kept["rounds"]) / kept["rounds"].where(kept["rounds"] > 0)
    return shape.assign(rate=sums["emitted"] / sums["seconds"], tar=tar).reset_index()


def itself(family: DataFrame) -> DataFrame:
    """What each draft is by itself on held-out text: perplexity, shares of best tokens right and of continuations found."""
    sums = family.groupby("draft")[ITSELF].sum()
    asked = sums["asked"].where(sums["asked"] > 0)
    shares = {"right": sums["right"] / sums["positions"], "chosen": sums["chosen"] / asked}
    return framed({"perplexity": np.exp(sums["loss"] / sums["positions"]), **shares})


def merits(frame: DataFrame, family: DataFrame) -> DataFrame:
    """`pace` beside what each draft is `itself`."""
    return pace(frame).join(itself(family), on="draft")


def correlations(table: DataFrame) -> DataFrame:
    """Spearman's rank correlation of every quality with TAR and with throughput over the drafts of a context; + is better."""
    lines = []
    pairs = [(merit, sign, outcome) for merit, sign in MERITS.items() for outcome in ("tar", "rate") if merit != outcome]
    for facts, rows in groups(table, CONTEXT):
        for merit, sign, outcome in pairs:
            both = rows[[merit, outcome]].dropna()
            if len(both):
                enough = len(both) >= FEWEST and both.nunique().min() > 1
                found = spearman(sign * both[merit], both[outcome]) if enough else NONE
                facts = {**facts, "merit": merit, "outcome": outcome, "drafts": len(both)}
                lines.append({**facts, **found._asdict(), "verdict": _correlated(found)})
    return framed(lines, [*CONTEXT, "merit", "outcome", "drafts", *Interval._fields, "verdict"])


def _correlated(found: Interval) -> str:
    if np.isnan(found.low):
        return "too few drafts that differ"
    words = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    return words if found.low > 0 or found.high < 0 else f"none shown, {words}"


def beside_plain(frame: DataFrame) -> DataFrame:
    """Every draft's best setting over plain decoding, with its tokens per check, the fastest first within a context."""
    found = speedups(frame, ["draft"])
    found = found[found["draft"] != ""].merge(pace(frame)[[*KEYS, "tar", "layers", "body", "rate"]], on=KEYS)
    return found.sort_values([*CONTEXT, "ratio"], ascending=[True] * len(CONTEXT) + [False])


def required(frame: DataFrame) -> DataFrame:
    """One line per draft and head at its best k: its step over the target's, and the acceptance that it has and would need.

    `alpha` is the acceptance that would settle as many tokens per check as it did (Leviathan et al. 2023); `even` is the
    acceptance at which the draft's rounds, as timed, are as fast as plain decoding, `best` as fast as the fastest draft and
    head. NaN where no acceptance is enough.
    """
    rows = drafted(frame)
    rows = best(rows[(rows["method"] == "draft_model") & (rows["finalize"] == "deferred")], [*KEYS, "head"])
    groups = rows.groupby([*KEYS, "head", "k"])
    sums, parts = groups[["emitted", "seconds", "accepted", "rounds"]].sum(), groups[["burst_seconds", "step_seconds"]].median()
    table = sums.join(parts).reset_index()
    plain = frame[frame["method"] == "baseline"].groupby(CONTEXT)[["emitted", "seconds"]].sum()
    table = table.merge((plain["seconds"] / plain["emitted"]).rename("plain"), on=CONTEXT)
    per_token, a_round = table["seconds"] / table["emitted"], table["seconds"] / table["rounds"]
    fastest = per_token.groupby([table[name] for name in CONTEXT]).transform("min")
    tokens = {"alpha": 1 + table["accepted"] / table["rounds"], "even": a_round / table["plain"], "best": a_round / fastest}
    for name, found in tokens.items():
        pairs = zip(found, table["k"], strict=True)
        table[name] = [acceptance_for(tar, k) if tar <= k + 1 else np.nan for tar, k in pairs]
    return table.assign(step=table["burst_seconds"] / table["k"] / table["plain"], speedup=table["plain"] / per_token)


def designed(frame: DataFrame) -> str:
    """The draft called "designed", or the member of the family that ships under this name; without them the fastest one."""
    ranked = list(pace(frame).sort_values("rate")["draft"])
    known = [name for name in (point_of_designed(), DESIGNED) if name in set(frame["draft"])]
    return str(["", *ranked, *known][-1])


def against(frame: DataFrame, name: str) -> DataFrame:
    """A draft over each of the others, both at their best settings, in the same turns on the same prompts."""
    others = sorted(set(frame["draft"]) - {"", name}) or [name]
    pairs = {other: frame[frame["draft"].isin([name, other])] for other in others}
    return joined(gain(pair, {"draft": other}, CONTEXT, ["draft"]).assign(over=other) for other, pair in pairs.items())


def deepest(frame: DataFrame, name: str) -> str:
    """The deepest draft with as many layer parameters as this one, within a twentieth; "" where none is deeper."""
    facts: Any = frame[frame["draft"] != ""].drop_duplicates("draft").set_index("draft")
    if name not in facts.index:
        return ""
    mine = facts.loc[name]
    alike = facts[((facts["body"] / mine["body"] - 1).abs() <= TOLERANCE) & (facts["layers"] > mine["layers"])]
    return str(alike["layers"].idxmax()) if len(alike) else ""


def timed_steps(frame: DataFrame) -> DataFrame:
    """The timed steps, each with the name of the group it is compared in: a group of shapes, or the shape that was spread."""
    return frame[frame["piece"] == "step"].assign(base=frame["group"].where(frame["group"] != "", frame["shape"]))


def steps(frame: DataFrame) -> DataFrame:
    """One line per shape and head: the median seconds and milliseconds of a step, and the bytes that it reads."""
    table = timed_steps(frame).groupby(SHAPE, dropna=False, sort=False)[["seconds", "bytes"]].median().reset_index()
    return table.assign(ms=1e3 * table["seconds"])


def depth_gains(frame: DataFrame) -> DataFrame:
    """Seconds of the deepest shape over those of the shallowest with as many parameters in its layers, paired by turn."""
    lines = []
    for facts, mine in groups(timed_steps(frame), SAME, sort=False):
        deep = mine[mine["layers"] == mine["layers"].max()]
        alike = mine[(mine["body"] / deep["body"].iloc[0] - 1).abs() <= TOLERANCE]
        shallow = alike[alike["layers"] == alike["layers"].min()]
        depths = {"deep": int(deep["layers"].iloc[0]), "shallow": int(shallow["layers"].iloc[0])}
        if depths["shallow"] < depths["deep"]:
            pair = shallow.merge(deep, on="turn", suffixes=("", "_deep"))
            lines.append({**facts, **depths, "turns": len(pair), **over(pair["seconds_deep"], pair["seconds"])})
    return framed(lines, [*SAME, "deep", "shallow", "ratio", "low", "high", "turns", "verdict"])


class Fit(NamedTuple):
    """A step as layers x `per_layer` seconds + bytes / `bandwidth`; `share` is what the layers take of a median step."""

    per_layer: float
    bandwidth: float
    share: float


def fit(frame: DataFrame) -> Fit:
    """Least squares over all shapes, each weighted by its own time; NaN for fewer than three shapes."""
    table = steps(frame)
    if len(table) < 3:
        return Fit(np.nan, np.nan, np.nan)
    sides = table[["layers", "bytes"]].to_numpy(dtype=float)
    scale = sides.max(axis=0)
    found = np.linalg.lstsq(sides / scale / table[["seconds"]].to_numpy(), np.ones(len(table)), rcond=None)[0] / scale
    per_layer, per_byte = (max(0.0, float(value)) for value in found)
    share = (per_layer * table["layers"] / table["seconds"]).clip(upper=1.0).median()
    return Fit(per_layer, 1 / per_byte if per_byte else np.inf, float(share))

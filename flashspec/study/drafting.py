"""Readings about drafts: how fast each is, whether the better language model drafts better, and what a step costs by shape."""

from __future__ import annotations

import numpy as np

from flashspec.models.family import TOLERANCE
from flashspec.study.compare import CONTEXT, NONE, best, gain, ratios, spearman, speedups, totals
from flashspec.study.frames import DataFrame, framed, groups, joined
from flashspec.theory import Interval, acceptance_for

NEAR = 4  # TAR is compared at the k nearest to this one
FEWEST = 5  # drafts that a rank correlation needs
TWINS = ("wide2-3", "designed")  # the member of the family that ships, and its name as a shipped draft
QUALITIES = {"perplexity": -1, "right": 1, "chosen": 1, "tar": 1, "layers": -1, "body": -1}  # the sign of better
WORDS = {
    "right": "best tokens right", "chosen": "continuations found", "tar": "tokens a check", "rate": "tokens a second",
    "layers": "fewer layers", "body": "smaller body", "perplexity": "lower perplexity",
}  # fmt: skip
KEYS = [*CONTEXT, "draft"]
SAME = ["base", "head", "format", "probes", "shortlist", "past", "device"]  # what shapes on one line share
SHAPE = [*SAME, "shape", "layers", "hidden", "body"]


def drafted(frame: DataFrame) -> DataFrame:
    """The timed runs with a draft model; a draft that ran under two names counts once."""
    twice = TWINS[1] if set(TWINS) <= set(frame["draft"]) else ""
    return frame[~frame["draft"].isin(["", twice]) & ~frame["screened"]]


def pace(frame: DataFrame) -> DataFrame:
    """One line per draft and context: tokens per second at its best setting, and tokens per check at the k nearest to NEAR."""
    rows = drafted(frame)
    apart = (rows["k"] - NEAR).abs()
    near = totals(rows[apart == apart.groupby([rows[name] for name in KEYS]).transform("min")], KEYS)
    sizes = rows.groupby(KEYS)[["layers", "body"]].first().reset_index()
    fastest = totals(best(rows, KEYS), KEYS)
    return sizes.merge(fastest[[*KEYS, "rate"]]).merge(near[[*KEYS, "tar"]])


def itself(family: DataFrame) -> DataFrame:
    """What each draft is by itself on held-out text: perplexity, shares of best tokens right and of continuations found."""
    sums = family.groupby("draft")[["positions", "loss", "right", "asked", "chosen"]].sum()
    chosen = sums["chosen"] / sums["asked"].where(sums["asked"] > 0)
    perplexity = np.exp(sums["loss"] / sums["positions"])
    return framed({"perplexity": perplexity, "right": sums["right"] / sums["positions"], "chosen": chosen})


def qualities(frame: DataFrame, family: DataFrame) -> DataFrame:
    """`pace` beside what each draft is `itself`."""
    return pace(frame).join(itself(family), on="draft")


def correlations(table: DataFrame) -> DataFrame:
    """Spearman's rank correlation of every quality with TAR and with throughput over the drafts of a context; + is better."""
    lines = []
    pairs = [(quality, outcome) for quality in QUALITIES for outcome in ("tar", "rate") if quality != outcome]
    for facts, rows in groups(table, CONTEXT):
        for quality, outcome in pairs:
            both = rows[[quality, outcome]].dropna()
            enough = len(both) >= FEWEST and both.nunique().min() > 1
            found = spearman(QUALITIES[quality] * both[quality], both[outcome]) if enough else NONE
            words = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
            if np.isnan(found.low):
                words = "too few drafts that differ"
            elif found.low <= 0 <= found.high:
                words = f"none shown, {words}"
            if len(both):
                lines.append({**facts, "quality": quality, "outcome": outcome, **found._asdict(), "verdict": words})
    return framed(lines, [*CONTEXT, "quality", "outcome", *Interval._fields, "verdict"])


def beside_plain(frame: DataFrame) -> DataFrame:
    """Every draft's best setting over plain decoding, with its tokens per check, the fastest first within a context."""
    found = speedups(frame, ["draft"]).merge(pace(frame)[[*KEYS, "tar"]], on=KEYS)
    return found.sort_values([*CONTEXT, "ratio"], ascending=[True] * len(CONTEXT) + [False])


def required(frame: DataFrame) -> DataFrame:
    """One line per draft and head at its best k: its step over the target's, and the acceptance that it has and would need.

    `alpha` is the acceptance that would settle as many tokens per check as it did (Leviathan et al. 2023); `even` is the
    acceptance at which the draft's rounds, as timed, are as fast as plain decoding, `best` as fast as the fastest draft and
    head. NaN where no acceptance is enough.
    """
    rows, keys = drafted(frame), [*KEYS, "head", "k"]
    rows = best(rows[(rows["method"] == "draft_model") & (rows["finalize"] == "deferred")], keys[:-1])
    burst = rows.groupby(keys)["burst_seconds"].median().rename("burst")
    plain = totals(frame[(frame["method"] == "baseline") & ~frame["screened"]], CONTEXT)[[*CONTEXT, "rate"]]
    table = totals(rows, keys).join(burst, on=keys).merge(plain, on=CONTEXT, suffixes=("", "_plain"))
    a_round, fastest = table["seconds"] / table["rounds"], table.groupby(CONTEXT)["rate"].transform("max")
    tokens = {"alpha": table["tar"], "even": a_round * table["rate_plain"], "best": a_round * fastest}
    for name, found in tokens.items():
        pairs = zip(found, table["k"], strict=True)
        table[name] = [acceptance_for(tar, k) if tar <= k + 1 else np.nan for tar, k in pairs]
    table["speedup"] = table["rate"] / table["rate_plain"]
    return table.assign(step=table["burst"] / table["k"] * table["rate_plain"])


def designed(frame: DataFrame) -> str:
    """The draft called "designed", or the member of the family that ships under this name; without them the fastest one."""
    ranked = pace(frame).sort_values("rate")["draft"]
    return str(["", *ranked, *(name for name in TWINS if name in set(frame["draft"]))][-1])


def against(frame: DataFrame, name: str) -> DataFrame:
    """A draft over each of the others, both at their best settings, in the same turns on the same prompts."""
    others = sorted(set(frame["draft"]) - {"", name}) or [name]
    pairs = {other: frame[frame["draft"].isin([name, other])] for other in others}
    return joined(gain(pair, {"draft": other}, CONTEXT, ["draft"]).assign(over=other) for other, pair in pairs.items())


def deepest(frame: DataFrame, name: str) -> str:
    """The deepest draft with as many layer parameters as this one, within a twentieth; "" where none is deeper."""
    facts = frame[frame["draft"] != ""].drop_duplicates("draft").set_index("draft")[["layers", "body"]]
    mine = facts.reindex([name]).iloc[0]
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
    rows = timed_steps(frame)
    deep = rows[rows["layers"] == rows.groupby(SAME, dropna=False)["layers"].transform("max")]
    both = rows.merge(deep, on=[*SAME, "turn"], suffixes=("", "_below"))
    both = both[(both["body"] / both["body_below"] - 1).abs() <= TOLERANCE]
    least = both.groupby(SAME, dropna=False)["layers"].transform("min")
    both = both[(both["layers"] == least) & (least < both["layers_below"])]
    return ratios(both.rename(columns={"layers": "shallow", "layers_below": "deep"}), [*SAME, "deep", "shallow"])


def fit(frame: DataFrame) -> dict[str, float]:
    """A step as layers x `per_layer` seconds + bytes / `bandwidth`; `share` is what the layers take of a median step.

    Least squares over all shapes, each weighted by its own time; NaN for fewer than three shapes.
    """
    from scipy.optimize import nnls

    table = steps(frame)
    if len(table) < 3:
        return dict.fromkeys(("per_layer", "bandwidth", "share"), np.nan)
    sides = table[["layers", "bytes"]].to_numpy(dtype=float)
    scale = sides.max(axis=0)
    per_layer, per_byte = nnls(sides / scale / table[["seconds"]].to_numpy(), np.ones(len(table)))[0] / scale
    share = (per_layer * table["layers"] / table["seconds"]).clip(upper=1.0).median()
    return {"per_layer": per_layer, "bandwidth": 1 / per_byte if per_byte else np.inf, "share": float(share)}

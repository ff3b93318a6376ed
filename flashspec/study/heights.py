"""Readings of tables on hierarchies: every rate, ratio and share that a figure or a sentence about them shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.measure.bench import Interval, Refused
from flashspec.study.readings import Missing, fair_ratio, where, words
from flashspec.study.style import NAMES
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEDULE = ["method", "head", "probes", "draft_exit", "verify_exit", "n_d", "n_i"]
SETTING = ["temperature", "rule"]


def rates(frame: DataFrame) -> DataFrame:
    """Median tokens per second of every schedule that was timed, prompts summed within a repeat."""
    keys = [*SETTING, *SCHEDULE]
    sums = where(frame, stage="timed").groupby([*keys, "repeat"])[["emitted", "seconds"]].sum().reset_index()
    sums["rate"] = sums["emitted"] / sums["seconds"]
    return sums.groupby(keys)["rate"].median().reset_index()


def tuned(frame: DataFrame, method: str, **setting: Any) -> DataFrame:
    """The rows of a method at the schedule with the highest median rate over all kinds of prompt."""
    table = where(rates(where(frame, **setting)), method=method)
    best = table.loc[table["rate"].idxmax()]
    return where(frame, stage="timed", **setting, **{name: best[name] for name in SCHEDULE})


def fastest(frame: DataFrame, method: str, count: int, **setting: Any) -> DataFrame:
    """The `count` schedules of a method with the highest median rates, the fastest first."""
    return where(rates(where(frame, **setting)), method=method).nlargest(count, "rate")


def gain(frame: DataFrame, above: str, below: str, **setting: Any) -> Interval:
    """How many times faster `above` runs than `below`, each tuned, paired by repeat; Refused where texts differ unexplained."""
    return fair_ratio(tuned(frame, below, **setting), tuned(frame, above, **setting), frame)


def gain_verdict(frame: DataFrame, above: str, below: str, **setting: Any) -> str:
    """The gain in words, or why none may be given."""
    try:
        return words(gain(frame, above, below, **setting))
    except (Refused, Missing) as error:
        return str(error)


def by_kind(frame: DataFrame, method: str, **setting: Any) -> dict[str, float]:
    """Median tokens per second of a tuned method by kind of prompt."""
    rows = tuned(frame, method, **setting)
    return (rows["emitted"] / rows["seconds"]).groupby(rows["kind"]).median().to_dict()


def losses(frame: DataFrame, method: str = "hispec") -> list[str]:
    """Where a tuned method is not the fastest, a line a setting: kinds of prompt, who wins them, how many times as fast."""
    found = []
    for values, rows in frame.groupby(SETTING):
        setting = dict(zip(SETTING, values, strict=True))
        mine = by_kind(rows, method, **setting)
        others = {name: by_kind(rows, name, **setting) for name in sorted(set(rows["method"]) - {method})}
        best = {kind: max((each[kind], name) for name, each in others.items()) for kind in mine}
        lost = [(kind, name, top / mine[kind]) for kind, (top, name) in best.items() if top > mine[kind]]
        if lost:
            told = ", ".join(f"{kind} to {NAMES.get(name, name)} ({ratio:.2f}×)" for kind, name, ratio in lost)
            found.append(f"{_called(setting)}, {told}")
    return found


def _called(setting: dict[str, Any]) -> str:
    """A setting in a sentence; greedy decoding has no rule."""
    return f"T = {setting['temperature']:g}" + (f" under {setting['rule']}" if setting["temperature"] else "")


def schedule(frame: DataFrame, method: str, **setting: Any) -> str:
    """A method's tuned schedule as a sentence carries it."""
    row = tuned(frame, method, **setting).iloc[0]
    if method == "hispec":
        return f"exits {row.draft_exit} and {row.verify_exit}, N_d = {row.n_d}, N_i = {row.n_i}"
    return f"exit {row.draft_exit}, k = {row.n_d}" if row.draft_exit else f"k = {row.n_d}"


def predictions(frame: DataFrame) -> DataFrame:
    """Measured tokens per second of every schedule, and those that costs and acceptance foretell, the prompt's reading added."""
    frame = where(frame, stage="timed")
    table = frame.assign(foretold=frame["emitted"] / frame["predicted"] + frame["prompts"] * frame["prefill_seconds"])
    sums = table.groupby([*SETTING, *SCHEDULE, "repeat"])[["emitted", "seconds", "foretold"]].sum().reset_index()
    sums["measured_rate"], sums["predicted_rate"] = sums["emitted"] / sums["seconds"], sums["emitted"] / sums["foretold"]
    return sums.groupby([*SETTING, *SCHEDULE])[["measured_rate", "predicted_rate"]].median().reset_index()


def exits(frame: DataFrame) -> DataFrame:
    """Shares by pair of depths, kinds summed: agreement, containment, overlap, and the errors of `against` as a verifier.

    `false_accept`: of what it keeps, the share that the whole model drops; `false_reject`: of what it drops, the share that
    the whole model would have kept. `mean_loss` and `final_loss` are nats a token at `depth` and at `against`.
    """
    sums = frame.groupby(["depth", "against", "layers"]).sum(numeric_only=True).reset_index()
    n, dropped = sums["positions"], sums["positions"] - sums["same"]
    sums["agreement"], sums["overlap_share"] = sums["same"] / n, sums["overlap"] / n
    sums["mean_loss"], sums["final_loss"] = sums["loss"] / n, sums["against_loss"] / n
    for k in (2, 5, 10):
        sums[f"top_{k}"] = sums[f"in_top_{k}"] / n
    sums["false_accept"] = (sums["same"] - sums["both"]) / sums["same"].where(sums["same"] > 0)
    sums["false_reject"] = (sums["right"] - sums["both"]) / dropped.where(dropped > 0)
    return sums


def head_share(frame: DataFrame, draft_exit: int) -> float:
    """Share of a drafted token's time that the dense head takes at an exit."""
    rows = where(frame, draft_exit=draft_exit, head="dense")
    return float((rows["head_seconds"] / rows["draft_seconds"]).median())


def passes(frame: DataFrame) -> DataFrame:
    """Layer-tokens for each final token, the prompt's reading apart, and the closed form's mean, kinds summed."""
    keys = ["method", "reuse", "draft_exit", "verify_exit", "n_d", "n_i", *SETTING]
    table = frame.assign(own=frame["layer_tokens"] - frame["prompt_layer_tokens"], closed=frame["expected"] * frame["emitted"])
    sums = table.groupby(keys)[["own", "closed", "emitted"]].sum().reset_index()
    return sums.assign(found=sums["own"] / sums["emitted"], expected=sums["closed"] / sums["emitted"])


USES = ["weights", "cache", "rows", "proposals", "other"]


def memory(frame: DataFrame) -> DataFrame:
    """Live bytes of every method over plain decoding's at the same shape, by use; FlashHead's index apart, not in `ratio`."""
    plain = where(frame, method="baseline").set_index("shape")[USES].sum(axis=1)
    base = frame["shape"].map(plain)
    shares = frame[[*USES, "index"]].div(base, axis=0)
    return frame[["shape", "method", "reuse"]].join(shares).assign(ratio=shares[USES].sum(axis=1))


def flash_gains(frame: DataFrame, method: str) -> DataFrame:
    """FlashHead's rate over the dense head's by exit and probes, measured and foretold, beside the dense head's share.

    `foretold` takes every stage's cost and FlashHead's own acceptance; `by_share` the head's share alone: Amdahl's law on the
    time of a whole round, as if FlashHead's drafts were believed as often as the dense head's.
    """
    rows = where(frame, method=method)
    table, keys = where(predictions(rows), method=method), [*SETTING, "draft_exit"]
    dense = where(table, head="dense").set_index(keys)
    flash = where(table, head="flash").set_index(keys)
    found = flash.assign(
        measured=flash["measured_rate"] / dense["measured_rate"].reindex(flash.index),
        foretold=flash["predicted_rate"] / dense["predicted_rate"].reindex(flash.index),
    ).reset_index()
    shares = [head_share(rows, depth) for depth in found["draft_exit"]]
    return found.assign(share=shares, by_share=[_by_share(rows, line) for line in found.to_dict("records")])


def _by_share(frame: DataFrame, line: dict[str, Any]) -> float:
    """Amdahl's gain of a round whose drafts are scored by FlashHead instead of the dense head."""
    rows = where(frame, **{name: line[name] for name in (*SETTING, "draft_exit")})
    dense, flash = where(rows, head="dense"), where(rows, head="flash", probes=line["probes"])
    drafting = (dense["drafted"] * dense["draft_seconds"]).sum()
    checking = sum((dense[f"actions_{i}"] * dense[f"check_{i}_seconds"]).sum() for i in (1, 2))
    heads = (dense["drafted"] * dense["head_seconds"]).sum()
    return amdahl(float(heads / (drafting + checking)), float(dense["head_seconds"].median() / flash["head_seconds"].median()))


def gate_words(frame: DataFrame, method: str) -> str:
    """How often costs and acceptance foretell rightly whether FlashHead pays, and how far off their gains are, in words."""
    table = flash_gains(frame, method)
    right = ((table["measured"] > 1) == (table["foretold"] > 1)).sum()
    off = 100 * (table["foretold"] / table["measured"] - 1).abs().median()
    return f"{right} of {len(table)} settings, with a median error of {off:.1f} % in the gain"


def must_words(frame: DataFrame, method: str) -> str:
    """Where FlashHead must pay, and whether it does, in words: settings foretold to gain more than the median error."""
    table = flash_gains(frame, method)
    error = (table["foretold"] / table["measured"] - 1).abs().median()
    owed = table[table["foretold"] > 1 + error]
    if owed.empty:
        return f"no setting is foretold to gain more than {100 * error:.1f} %"
    paid = owed[owed["measured"] > 1]
    gain, said = owed["measured"].median(), owed["foretold"].median()
    return f"it pays in {len(paid)} of {len(owed)} such settings, {gain:.2f}× in the median where {said:.2f}× was foretold"

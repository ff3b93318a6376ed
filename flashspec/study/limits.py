"""What keeps speculation, or a faster head, from a wanted gain: where a round's time goes, and what it would take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.study.readings import Methods, best, by_repeat, chosen_rows, fastest, predictions, runs
from flashspec.theory import Costs, amdahl, speedup
from flashspec.theory.rounds import acceptance_for, break_even_acceptance

if TYPE_CHECKING:
    from pandas import DataFrame

PARTS = ("drafting takes", "the check", "the loop")


class Limits(NamedTuple):
    """At the method's best k, by medians of its measured parts, reading the prompt apart.

    `now` and `needed` are acceptances of one drafted token (independent ones), `needed` None where no acceptance gives the
    wanted gain; `free` is the gain over plain decoding at today's tokens a check if drafting cost nothing, `parts` the gain
    that the parts give as they are.
    """

    k: int
    now: float
    needed: float | None
    free: float
    parts: float


def limits(frame: DataFrame, method: Methods, gain: float, **setting: Any) -> Limits:
    """What a gain over plain decoding would take in this setting; theorem 3.8 of Leviathan et al. 2023 with measured parts."""
    plain, name = chosen_rows(frame, "baseline", **setting), fastest(frame, method, **setting)
    rows, k = chosen_rows(frame, name, **setting), int(best(frame, **setting).loc[name, "k"])
    step = float((plain["draft_seconds"] + plain["overhead_seconds"]).median())
    draft, check, overhead = (float(rows[f"{part}_seconds"].median()) for part in ("draft", "check", "overhead"))
    tar, costs = float(runs(rows)["tar"].median()), Costs(draft, check, overhead=overhead)
    free, parts = (speedup(tar, each, k, step) for each in (replace(costs, draft=0.0), costs))
    return Limits(k, acceptance_for(tar, k), break_even_acceptance(costs, k, step / gain), free, parts)


def words(found: Limits, gain: float) -> str:
    """The limits in one sentence."""
    asked = "no acceptance would do" if found.needed is None else f"a drafted token has to stand with {found.needed:.2f}"
    today = f"today {found.now:.2f} gives {found.parts:.2f}×, and a draft without cost would give {found.free:.2f}×"
    return f"at k = {found.k}, for {gain:.1f}× {asked}; {today}"


class Round(NamedTuple):
    """A method's round at its best k: seconds of drafting, of the check, of the loop, and the tokens that it settles."""

    draft: float
    check: float
    overhead: float
    tar: float

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.draft + self.check + self.overhead


def round_of(frame: DataFrame, method: Methods, **setting: Any) -> Round:
    """The round of a drafting method, by medians of its measured parts."""
    rows = chosen_rows(frame, fastest(frame, method, **setting), **setting)
    draft, check, overhead = (float(rows[f"{part}_seconds"].median()) for part in ("draft", "check", "overhead"))
    return Round(int(rows["k"].iloc[0]) * draft, check, overhead, float(runs(rows)["tar"].median()))


def round_words(frame: DataFrame, method: Methods, **setting: Any) -> str:
    """Where the time of a round goes, in one clause."""
    found = round_of(frame, method, **setting)
    shares = (f"{name} {100 * part / found.seconds:.0f} %" for name, part in zip(PARTS, found[:3], strict=True))
    return f"of a round of {1e3 * found.seconds:.1f} ms, {', '.join(shares)}"


class Cheaper(NamedTuple):
    """A head against another: time and tokens of its rounds over those of the other, the other's share of drafting, and what
    drafting for nothing, at the other's k and tokens, would give."""

    time: float
    tokens: float
    drafting: float
    free: float


def of_head(frame: DataFrame, above: Methods, below: Methods, **setting: Any) -> Cheaper:
    """What the head of `above` changes beside `below`, each at its best k."""
    mine, theirs = (round_of(frame, method, **setting) for method in (above, below))
    drafting = theirs.draft / theirs.seconds
    return Cheaper(mine.seconds / theirs.seconds, mine.tar / theirs.tar, drafting, amdahl(drafting, float("inf")))


def head_words(found: Cheaper) -> str:
    """The same in one sentence."""
    return (
        f"its rounds take {found.time:.2f} of the time and settle {found.tokens:.2f} of the tokens; drafting was "
        f"{100 * found.drafting:.0f} % of a round, so drafting for nothing, and as well, would give {found.free:.2f}×"
    )


def off_gain(frame: DataFrame, above: Methods, below: Methods, **setting: Any) -> float:
    """Measured over foretold gain of `above` over `below`, each at its best, less 1; median over repeats."""
    mine, theirs = (predictions(chosen_rows(frame, m, **setting)).set_index("repeat") for m in (above, below))
    measured, foretold = (theirs[column] / mine[column] for column in ("seconds", "predicted"))
    return float((measured / foretold).median() - 1)


def spread(frame: DataFrame, method: Methods, **setting: Any) -> float:
    """Seconds of a method's slowest repeat over those of its fastest, less 1."""
    seconds = by_repeat(chosen_rows(frame, method, **setting), "seconds")
    return float(seconds.max() / seconds.min() - 1)


def prompt_share(frame: DataFrame, method: Methods, **setting: Any) -> float:
    """Share of a method's time that goes into making stages and reading prompts, median over repeats."""
    rows = chosen_rows(frame, method, **setting)
    spent = by_repeat(rows.assign(prompt=rows["prompts"] * rows["prefill_seconds"]), "prompt")
    return float((spent / by_repeat(rows, "seconds")).median())

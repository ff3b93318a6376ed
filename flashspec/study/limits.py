"""What keeps speculation from a wanted gain: the acceptance it would take, and what a draft that costs nothing would give."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.study.readings import Methods, best, chosen_rows, fastest, runs
from flashspec.theory import Costs, speedup
from flashspec.theory.rounds import acceptance_for, break_even_acceptance

if TYPE_CHECKING:
    from pandas import DataFrame


class Limits(NamedTuple):
    """At the method's best k, by medians of its measured parts, reading the prompt apart.

    `now` and `needed` are acceptances of one drafted token (independent ones), `needed` None where no acceptance gives the
    wanted gain; `free` is the gain over plain decoding at today's tokens a check if drafting cost nothing.
    """

    k: int
    now: float
    needed: float | None
    free: float


def limits(frame: DataFrame, method: Methods, gain: float, **setting: Any) -> Limits:
    """What a gain over plain decoding would take in this setting; theorem 3.8 of Leviathan et al. 2023 with measured parts."""
    plain, name = chosen_rows(frame, "baseline", **setting), fastest(frame, method, **setting)
    rows, k = chosen_rows(frame, name, **setting), int(best(frame, **setting).loc[name, "k"])
    step = float((plain["draft_seconds"] + plain["overhead_seconds"]).median())
    draft, check, overhead = (float(rows[f"{part}_seconds"].median()) for part in ("draft", "check", "overhead"))
    tar, costs = float(runs(rows)["tar"].median()), Costs(draft, check, overhead=overhead)
    free = speedup(tar, replace(costs, draft=0.0), k, step)
    return Limits(k, acceptance_for(tar, k), break_even_acceptance(costs, k, step / gain), free)


def words(found: Limits, gain: float) -> str:
    """The limits in one sentence."""
    asked = "no acceptance would do" if found.needed is None else f"a drafted token has to stand with {found.needed:.2f}"
    today = f"today it stands with {found.now:.2f}, and a draft without cost would give {found.free:.2f}x"
    return f"at k = {found.k}, for {gain:.1f}x {asked}; {today}"

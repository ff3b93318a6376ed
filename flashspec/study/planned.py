"""What `flashspec plan` would have recommended for every draft of a race, beside the k that measured fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flashspec.decoding.method import Method
from flashspec.measure.costs import PairCosts
from flashspec.measure.planning import advise
from flashspec.study.advice import Stored
from flashspec.study.bars import at_most
from flashspec.study.foretold import parts_of
from flashspec.study.readings import Missing, where
from flashspec.study.winners import rates
from flashspec.theory import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

    from flashspec.study.experiment import Results

NAME = "predicted_vs_measured"
LOSS = 3.0  # percent of the fastest k's tokens per second that a recommendation may lose


class Planned(NamedTuple):
    """One draft: the recommended k, the fastest one, and what the recommendation loses of its tokens per second, in percent."""

    draft: str
    recommended: int
    fastest: int
    loss: float


def pair_costs(parts: DataFrame, draft: str) -> PairCosts:
    """Stored parts of a draft as `plan` measures them; every turn of every table is one."""
    mine = parts[parts["draft"] == draft].pivot_table(index=["table", "repeat"], columns="part", values="seconds")
    if mine.empty:
        raise Missing(f"the tables of draft_parts have nothing on {draft}; run draft_throughput afresh")
    ks = sorted(int(name.split()[1]) for name in mine if name.startswith("check "))
    return PairCosts(tuple(mine.to_dict("records")), tuple(ks))


def stored_acceptance(counts: DataFrame, draft: str, temperature: float) -> Stored:
    """Replayed counts of a draft's dense head on unseen prompts, one item a kind."""
    mine = where(counts, draft=draft, temperature=temperature, method="dense")
    columns = list(Counts._fields)
    groups = mine.groupby("k")
    found = {("dense", int(k)): tuple(Counts(*row) for row in rows[columns].itertuples(index=False)) for k, rows in groups}
    return Stored(found, NAME)


def planned(frame: DataFrame, parts: DataFrame, counts: DataFrame, temperature: float) -> list[Planned]:
    """Every draft of a race whose acceptance on other prompts is stored, at the k that were run and replayed.

    `parts` are those measured between the runs at this temperature. Missing where no draft is left.
    """
    runs = where(rates(frame), temperature=temperature, method="dense")
    found = []
    for draft, rows in runs.groupby("draft"):
        measured, acceptance = rows.set_index("k")["rate"], stored_acceptance(counts, str(draft), temperature)
        choices = [Method("model", k=int(k)) for k in measured.index if ("dense", int(k)) in acceptance.found]
        if choices:
            chosen = advise(pair_costs(parts, str(draft)), acceptance, choices).best.method.k
            loss = float(100 * (1 - measured[chosen] / measured.max()))
            found.append(Planned(str(draft), chosen, int(measured.idxmax()), loss))
    if not found:
        raise Missing("no draft of the race was replayed on other prompts; run predicted_vs_measured with the same drafts")
    return found


def planned_in(races: Sequence[Results], counts: DataFrame, temperature: float) -> list[Planned]:
    """`planned` for the drafts of several races; each draft is held against its own race only."""
    return [one for race in races for one in planned(race.frame, parts_of(race, temperature=temperature), counts, temperature)]


def planned_words(found: list[Planned], percent: float = LOSS) -> str:
    """How often the recommendation is within so many percent of the fastest k, and the largest loss, in words."""
    close = sum(one.loss <= percent for one in found)
    worst = max(found, key=lambda one: one.loss)
    return (
        f"within {percent:g} % for {close} of {len(found)} drafts; the largest loss is {at_most(worst.loss, percent)}: "
        f"{worst.draft} with k = {worst.recommended} recommended and k = {worst.fastest} the fastest"
    )

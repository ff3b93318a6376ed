"""Plans in words: what to run, what it is predicted to bring, what would have to change, and what came second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashspec.decoding.method import Method
from flashspec.measure.costs import name_of
from flashspec.measure.planning import Advice, Forecast, HeadCase
from flashspec.sampling import Sampling
from flashspec.study.compare import having
from flashspec.study.experiment import stored
from flashspec.study.parameters import Refused
from flashspec.theory import Counts

if TYPE_CHECKING:
    from pandas import DataFrame

TOLD = ("end_to_end", "head_tar")  # races, the one that is believed last
VERDICTS = {
    "speculate": "speculate:",
    "unclear": "no gain shown (the interval holds 1); the best would be",
    "do not speculate": "do not speculate; even the best setting loses,",
}


def lines(advice: Advice, sources: Mapping[str, str]) -> Iterator[str]:
    """The recommendation first; `sources` say where costs and acceptance come from."""
    best = advice.best
    parts = {f"{best.method.k} drafts": best.parts["draft"], **{n: t for n, t in best.parts.items() if n != "draft" and t}}
    ledger = " + ".join(f"{name} {milliseconds(seconds)}" for name, seconds in parts.items())
    yield f"{VERDICTS[advice.verdict]} {gain(best, 'predicted ')}, {best.rate:.3g} tokens/s"
    yield f"a round: {ledger}; {best.tar:.2f} tokens a check; plain decoding {milliseconds(best.step)} a token"
    yield f"break-even at k = {best.method.k}, each alone: {needs(best)}"
    if best.parts["verify"] < best.step:
        yield "beware: a check was timed shorter than one plain token, so part of this gain is how single rows were timed"
    yield from (f"runner-up: {gain(other)}" for other in advice.others)
    yield sourced(sources)


def gain(found: Forecast, how: str = "") -> str:
    """What to run, and its speedup with its interval."""
    method, speedup = found.method, found.speedup
    setting = f"k = {method.k}, {name_of(method)} head, final token {method.finalize}"
    interval = f"95 % interval {speedup.low:.2f} to {speedup.high:.2f}"
    return f"{setting}: {how}{speedup.value:.2f}x plain decoding ({interval})"


def milliseconds(seconds: float) -> str:
    """A time for people."""
    return f"{1000 * seconds:.3g} ms"


def sourced(sources: Mapping[str, str]) -> str:
    """Where numbers come from."""
    return "from: " + "; ".join(f"{name} {source}" for name, source in sources.items())


def needs(found: Forecast) -> str:
    """What one change alone would have to reach for speculation to cost what plain decoding does."""
    acceptance, tar, draft = found.needs
    words = ["no acceptance is enough" if acceptance is None else f"acceptance {acceptance:.2f}", f"{tar:.2f} tokens a check"]
    words.append("not even a free draft pays" if draft is None else f"a draft step of {milliseconds(draft)}")
    return ", ".join(words)


def head_lines(cases: Sequence[HeadCase], sources: Mapping[str, str]) -> Iterator[str]:
    """The head to take, the reason and the runners-up, each beside the dense head."""
    best, *others = cases
    why = "no cheap head keeps enough; " if name_of(best.method) == "dense" else ""
    yield f"take the {name_of(best.method)} head at k = {best.method.k}: {why}{reason_of(best)}"
    yield from (f"runner-up: {name_of(case.method)}: {reason_of(case)}" for case in others)
    yield sourced(sources)


def reason_of(case: HeadCase) -> str:
    """The cheap-head gate in one clause (SlimSpec, arXiv 2605.10453)."""
    if name_of(case.method) == "dense":
        share = case.kappa / (1 + case.kappa)
        return f"what the others are compared with; {milliseconds(case.seconds)} a drafted token, drafting {share:.1%} of a round"
    return (
        f"{'pays' if case.pays else 'does not pay'}, predicted {case.gain:.3f}x the dense head's tokens/s; "
        f"{milliseconds(case.seconds)} a drafted token, {case.nu:.2f} of one with the dense head; "
        f"keeps {case.kept:.1%} of the dense head's tokens a check and must keep more than {case.gate:.1%} to pay"
    )


@dataclass(frozen=True)
class Stored:
    """Counts of one draft's writers in stored tables, one item a kind of text; `name` names the tables."""

    found: Mapping[tuple[str, int], tuple[Counts, ...]]
    name: str

    def counts(self, method: Method) -> tuple[Counts, ...]:
        """Counts of each kind; Refused with what the table holds where it lacks this writer or k."""
        held = self.found.get((name_of(method), method.k))
        if held is None:
            known = ", ".join(f"{name} at k = {k}" for name, k in sorted(self.found))
            raise Refused(f"{self.name} has no {name_of(method)} head at k = {method.k}, only {known or 'nothing'}")
        return held


def stored_counts(draft: str, sampling: Sampling, root: Path | None = None) -> Stored:
    """What the stored tables of decodes say about one draft under one sampling; Refused where none of them is stored.

    A writer that is in both has the counts of `head_tar`, the table made for comparing heads.
    """
    tables = {name: table for name in TOLD if (table := stored("race", root, name)) is not None}
    if not tables:
        raise Refused("no end-to-end table is stored; run `flashspec run head_tar` or `end_to_end`, or replay with --tar replay")
    found: dict[tuple[str, int], tuple[Counts, ...]] = {}
    for table in tables.values():
        found |= counts_by_writer(table.frame, draft, sampling)
    return Stored(found, ", ".join(tables))


def counts_by_writer(frame: DataFrame, draft: str, sampling: Sampling) -> dict[tuple[str, int], tuple[Counts, ...]]:
    """Counts of every writer and k in the first turn of a race, one item a kind, its prompts summed."""
    which = {"draft": draft, "temperature": sampling.temperature, "rule": sampling.rule, "turn": 0}
    rows = frame[having(frame, {**which, "method": "draft_model", "engine": "flashspec"})]
    found = {}
    for (head, probes, shortlist, k), mine in rows.groupby(["head", "probes", "shortlist", "k"]):
        once = mine.drop_duplicates(["kind", "prompt"], keep="last")
        sums = once.groupby("kind", sort=False)[["rounds", "drafted", "accepted"]].sum().astype(int).itertuples(index=False)
        writer = name_of(Method("model", head, probes=probes or None, shortlist=shortlist or None))
        found[writer, k] = tuple(Counts(rounds, drafted, kept, rounds + kept) for rounds, drafted, kept in sums)
    return found

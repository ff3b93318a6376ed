"""One timed run of a draft as a row, and the runs of several drafts in turns, each beside the parts measured around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flashspec.decoding.method import METHODS
from flashspec.measure.bench import text_digest
from flashspec.measure.contest import Entry, Record, Turns, in_turns, joined_by_kind
from flashspec.measure.prompts import Prompt
from flashspec.scores import Sampling
from flashspec.study.drafts import Pair
from flashspec.study.pairs import drafting
from flashspec.study.rows import DraftFacts, Kept, Turn, Writing

POOLED = "all"
BASELINE = "baseline"


@dataclass(frozen=True)
class Against:
    """Which target."""

    target: str
    target_digest: str


@dataclass(frozen=True)
class Trial(Turn, Kept, Writing, DraftFacts, Against):
    """One run on the prompts of one kind ("all": of every kind) in one turn; a baseline has k = 0 and drafts nothing.

    `parts` names the table of `draft_parts` that was measured before and between the runs.
    """

    text_digest: str
    parts: str


class Contestant(NamedTuple):
    """A method beside the pair it runs on; the entry's name is unique in its race."""

    pair: Pair
    entry: Entry


def baseline(pair: Pair, sampling: Sampling) -> Contestant:
    """Plain decoding."""
    return Contestant(pair, Entry(f"{BASELINE} {pair.name}", METHODS[BASELINE], sampling))


def speculating(pair: Pair, sampling: Sampling, writers: Iterable[tuple[str, int | None]], ks: Iterable[int]) -> list[Contestant]:
    """A draft with each head (name, probes) at each k."""
    blocks, found = tuple(ks), []
    for head, probes in writers:
        for k in blocks:
            method = drafting(head, probes, k=k)
            found.append(Contestant(pair, Entry(f"{head} {pair.name} {k} {method.probes or 0}", method, sampling)))
    return found


class Clocked(Protocol):
    """What times the parts of a race's drafts, one turn at a time."""

    def turn(self, prompt: Prompt) -> list[Any]:
        """Seconds of all parts now."""


def alongside(
    contestants: Sequence[Contestant], groups: Sequence[Sequence[Prompt]], clocked: Clocked, new_tokens: int
) -> tuple[list[Record], list[Any]]:
    """Records of a race, one turn a group of prompts, and the parts, timed before the race and after every prompt."""
    records, parts = list[Record](), clocked.turn(groups[0][0])
    for repeat, group in enumerate(groups):
        for prompt in group:
            records += race(contestants, [prompt], Turns(new_tokens, 1, int(not records)), repeat)
            parts += clocked.turn(prompt)
    return records, parts


def dealt(prompts: Sequence[Prompt], turns: int) -> list[list[Prompt]]:
    """Prompts of every kind in so many groups of equal size, the first group the first ones of each kind."""
    kinds = {prompt.kind: [each for each in prompts if each.kind == prompt.kind] for prompt in prompts}
    size = min(len(mine) for mine in kinds.values()) // turns
    return [[p for mine in kinds.values() for p in mine[turn * size : (turn + 1) * size]] for turn in range(turns)]


def race(contestants: Sequence[Contestant], prompts: Sequence[Prompt], turns: Turns, first: int = 0) -> Iterator[Record]:
    """Every contestant on every prompt, A B A B within a prompt; kept turns are numbered from `first`."""
    field = [(contestant.pair.models, contestant.entry) for contestant in contestants]
    return (record for _, record in in_turns(field, prompts, turns, first))


def laid_out(records: Iterable[Record], contestants: Iterable[Contestant], counts: Mapping[str, int], parts: str) -> list[Trial]:
    """Rows of joined records; `counts` holds the prompts of each kind."""
    known = {contestant.entry.name: contestant for contestant in contestants}
    return [_row(record, known[record.entry], counts[record.kind], parts) for record in joined_by_kind(records)]


def pooled(records: Iterable[Record]) -> Iterator[Record]:
    """The same records as of one kind."""
    return (record._replace(kind=POOLED) for record in records)


def prompt_counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Prompts of each kind, and of all together."""
    kinds = [prompt.kind for prompt in prompts]
    return {kind: kinds.count(kind) for kind in kinds} | {POOLED: len(kinds)}


def _row(record: Record, contestant: Contestant, prompts: int, parts: str) -> Trial:
    method, sampling, stats = contestant.entry.method, contestant.entry.sampling, record.stats
    plain = method.writer_is_target
    counted: dict[str, Any] = {name: getattr(stats, name) for name in ("rounds", "drafted", "accepted", "emitted")}
    return Trial(
        target=contestant.pair.target,
        target_digest=contestant.pair.target_digest,
        **contestant.pair.facts,
        method=BASELINE if plain else method.head,
        probes=method.probes or 0,
        k=0 if plain else method.k,
        temperature=sampling.temperature,
        rule=sampling.rule,
        kind=record.kind,
        prompts=prompts,
        seconds=record.seconds,
        repeat=record.repeat,
        text_digest=text_digest(record.tokens),
        parts=parts,
        **counted,
    )

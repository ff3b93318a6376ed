"""Every draft head under verification: tokens a check and tokens per second on real models, beside its agreement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from flashspec.decoding.method import METHODS, Method
from flashspec.heads.index import usable
from flashspec.heads.registry import HEADS, RANKED
from flashspec.measure.contest import Entry, Record, Turns, contest, joined_by_kind
from flashspec.measure.costs import name_of
from flashspec.measure.planning import Question
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.study.experiment import Experiment
from flashspec.study.held_out import LIVE, HeldOut, Source, halves, held_out, judged
from flashspec.study.pairs import among, at_least, folders
from flashspec.study.rows import Kept, Turn

BASELINE = "baseline"
FAMILY = (
    "dense", "int8", "int4", "flash", "flash_int8", "flash_int4", "ivf", "ivfpq", "hnsw", "fr_spec", "vocab_trim", "in_context",
    "preview",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    """Which heads draft for which pair, under which samplings."""

    target: str = "reference"  # target model: shipped name or folder
    draft: str = "main"  # draft model: shipped name or folder
    heads: tuple[str, ...] = FAMILY  # heads of the draft; plain decoding runs beside them
    probes: tuple[int, ...] = (32, 64, 128, 256)  # clusters that a FlashHead scores
    shortlists: tuple[int, ...] = (512, 2048)  # ids that a head with a shortlist scores exactly
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)  # 0 is greedy
    rule: str = "speculative"  # acceptance rule above T = 0
    k: int = 4  # drafted tokens a check
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind that are decoded
    tuning: int = 4  # prompts of each kind from which rankings and agreement come, half of them for each
    new_tokens: int = 64  # tokens emitted a prompt
    repeats: int = 3  # kept turns
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        among("heads", self.heads, HEADS)
        at_least(self, probes=1, shortlists=1, per_kind=1, tuning=2, new_tokens=2, repeats=1)
        least = 2 * self.per_kind
        if least > self.tuning:
            raise ValueError(f"half of the tuning prompts are decoded: tuning must be at least {least}, got {self.tuning}")
        for temperature in self.temperatures:
            Question(temperature=temperature, rule=self.rule, max_k=self.k)

    @property
    def writers(self) -> list[Method]:
        """One method a head and number of probes, or length of shortlist."""
        clustered = tuple(head for head in self.heads if head.startswith("flash"))
        others = tuple(head for head in self.heads if head not in clustered)
        found = Question(heads=clustered, probes=self.probes).writers if clustered else []
        found += Question(heads=others, shortlists=self.shortlists).writers if others else []
        return [replace(writer, k=self.k) for writer in found]

    @property
    def source(self) -> Source:
        """Where rankings and agreement come from."""
        return Source(self.target, self.draft, self.prompts, self.tuning, 2 * self.new_tokens, 1.0, self.seed)


@dataclass(frozen=True)
class Drafting:
    """What drafted, and under which sampling; probes and shortlist are 0 where the head has none."""

    draft: str
    head: str
    probes: int
    shortlist: int
    temperature: float
    rule: str
    k: int


@dataclass(frozen=True)
class Row(Turn, Kept, Drafting):
    """One head on the prompts of one kind in one turn.

    `agreed` of `positions` rows had the dense head's best id, and `covered` is the dense probability mass scored there; all
    three are empty for plain decoding and for a head that learns from verifications.
    """

    positions: int | None
    agreed: int | None
    covered: float | None


class Seen(NamedTuple):
    """What a head scores on judging rows."""

    positions: int | None = None
    agreed: int | None = None
    covered: float | None = None


def measure(params: Params) -> Iterator[Row]:
    """Decode real text with every draft head, in turns, and count what the target keeps; faiss's heads where it is installed."""
    params = replace(params, heads=tuple(usable(params.heads)))
    held = held_out(params.source)
    for name in set(params.heads) & set(RANKED):
        held.models.give("draft", name, held.head(name))
    prompts = first_of_each_kind(halves(load_prompts(params.prompts or None, params.tuning))[1], params.per_kind)
    methods = {BASELINE: METHODS[BASELINE]} | {name_of(writer): writer for writer in params.writers}
    seen = {name: seen_by(held, method) for name, method in methods.items()}
    for temperature in params.temperatures:
        sampling = Question(temperature=temperature, rule=params.rule, seed=params.seed).sampling
        entries = [Entry(name, method, sampling) for name, method in methods.items()]
        for record in runs(held, entries, prompts, params):
            entry = next(each for each in entries if each.name == record.entry)
            yield row(record, entry, (params.draft, params.per_kind), seen[record.entry])


def runs(held: HeldOut, entries: list[Entry], prompts: list[Prompt], params: Params) -> Iterator[Record]:
    """All decodes of one sampling, the prompts of a kind joined, turn after turn."""
    from tqdm import tqdm

    for turn in tqdm(range(params.repeats), desc=f"heads, T={entries[0].sampling.temperature}", delay=2, leave=False):
        found = contest(held.models, entries, prompts, Turns(params.new_tokens, 1, warmup=0 if turn else 1))
        yield from (record._replace(repeat=turn) for record in joined_by_kind(found))


def seen_by(held: HeldOut, method: Method) -> Seen:
    """Agreement and coverage of a writer's head; nothing where rows alone do not tell."""
    if method.writer_is_target or method.head in LIVE:
        return Seen()
    head: Any = held.models.head("draft", method.head)
    head = head.with_probes(method.probes) if method.probes else head
    head = head.with_shortlist(method.shortlist) if method.shortlist else head
    same, mass = judged(head, held)
    return Seen(len(same), int(same.sum()), round(float(mass.double().sum()), 3))


def row(record: Record, entry: Entry, facts: tuple[str, int], seen: Seen) -> Row:
    """One line of the table."""
    (draft, prompts), (_, method, sampling), stats = facts, entry, record.stats
    head = BASELINE if method.writer_is_target else method.head
    how = (draft, head, method.probes or 0, method.shortlist or 0, sampling.temperature, sampling.rule)
    counts = (stats.rounds, stats.drafted, stats.accepted, stats.emitted)
    k = 0 if method.writer_is_target else method.k
    return Row(*how, k, record.kind, prompts, *counts, record.seconds, record.repeat, *seen)


def points(params: Params) -> list[Params]:
    """One point a temperature."""
    return [replace(params, temperatures=(temperature,)) for temperature in params.temperatures]


SMOKE = Params(
    heads=("dense", "int8", "flash", "fr_spec", "in_context"), probes=(64,), shortlists=(2048,), temperatures=(0.0,), tuning=2,
    new_tokens=8, repeats=1,
)  # fmt: skip
EXPERIMENT = Experiment("head_tar", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

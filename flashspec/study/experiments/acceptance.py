"""How much of a draft the target keeps, by kind of text, with the rule that judged it and how much the text repeats itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from flashspec.decoding.generate import Stats
from flashspec.decoding.method import METHODS
from flashspec.measure.contest import Entry, Record, Turns, contest
from flashspec.measure.prompts import load_prompts
from flashspec.measure.repetition import repetition
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.experiments import end_to_end


@dataclass(frozen=True)
class Params:
    """Which drafts and heads to let draft, under which samplings; counts only, no clock."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ("main", "shallow")  # draft models: shipped names or folders
    methods: tuple[str, ...] = ("dense", "flash")  # drafting methods
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rules: tuple[str, ...] = ("coupling", "speculative")  # acceptance rules; at T = 0 only the first
    k: int = 4  # drafted tokens a check
    probes: int = 64  # clusters that FlashHead scores
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 16  # prompts of each kind
    new_tokens: int = 32  # tokens emitted a prompt
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        end_to_end.Params(
            methods=self.methods, temperatures=self.temperatures, rules=self.rules, ks=(self.k,), probes=self.probes,
            per_kind=self.per_kind, new_tokens=self.new_tokens,
        )  # fmt: skip


class Row(NamedTuple):
    """Counts of one method on all prompts of one kind; `repeated_n` is the mean share of n-grams that a text repeats."""

    draft: str
    method: str
    temperature: float
    rule: str
    k: int
    kind: str
    prompts: int
    rounds: int
    drafted: int
    accepted: int
    emitted: int
    repeated_1: float
    repeated_2: float
    repeated_3: float
    repeated_4: float


def measure(params: Params) -> Iterator[Row]:
    """Count accepted tokens of every draft, head, temperature and rule on prompts of several kinds."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    for draft, sampling in samplings(params):
        models = end_to_end.models_of(params.target, draft, "bfloat16", "dense")
        for name in params.methods:
            method = replace(METHODS[name], k=params.k, probes=params.probes if name == "flash" else None)
            runs = contest(models, [Entry(name, method, sampling)], prompts, Turns(params.new_tokens, 1, 0))
            facts = (draft, name, sampling.temperature, sampling.rule, params.k)
            yield from (Row(*facts, kind, *counted(records)) for kind, records in by_kind(_bar(runs, len(prompts))).items())


def samplings(params: Params) -> list[tuple[str, Sampling]]:
    """Drafts and samplings; greedy decoding once."""
    pairs = [(t, r) for t, r in product(params.temperatures, params.rules) if t > 0 or r == params.rules[0]]
    return [(draft, Sampling(t, seed=params.seed, rule=r)) for draft in params.drafts for t, r in pairs]


def by_kind(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records grouped by kind of prompt."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.kind, []).append(record)
    return groups


def counted(records: list[Record]) -> tuple:
    """Prompts, rounds, drafted, accepted, emitted, and the mean repeated share of 1- to 4-grams."""
    stats: list[Stats] = [record.stats for record in records]
    sums = [sum(getattr(s, name) for s in stats) for name in ("rounds", "drafted", "accepted", "emitted")]
    shares = [repetition(record.tokens) for record in records]
    return (len(records), *sums, *(sum(share[n] for share in shares) / len(shares) for n in (1, 2, 3, 4)))


def _bar(work: Iterable[Record], total: int) -> Iterable[Record]:
    from tqdm import tqdm

    return tqdm(work, total=total, desc="acceptance", unit="prompt", delay=2, leave=False)


def points(params: Params) -> list[Params]:
    """One point a draft, temperature and rule."""
    return [replace(params, drafts=(d,), temperatures=(s.temperature,), rules=(s.rule,)) for d, s in samplings(params)]


def folders(params: Params) -> Mapping[str, Path]:
    """Checkpoint folders whose digests enter the origin."""
    return end_to_end.folders(end_to_end.Params(target=params.target, drafts=params.drafts))


SMOKE = Params(drafts=("main",), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment(
    "acceptance", Params, Row, measure, measured=False, split=points, models=folders, presets={"smoke": SMOKE}
)

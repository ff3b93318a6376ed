"""How much of a draft the target keeps, by kind of text, with the rule that judged it and how much the text repeats itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from flashspec.decoding.generate import Stats
from flashspec.heads.registry import HEADS
from flashspec.measure.contest import Entry, Record, Turns, contest
from flashspec.measure.prompts import load_prompts
from flashspec.measure.repetition import repetition
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least, drafting, folders, models_of, samplings
from flashspec.study.rows import Kept


@dataclass(frozen=True)
class Params:
    """Which drafts and heads to let draft, under which samplings; counts only, no clock."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ("main", "shallow")  # draft models: shipped names or folders
    methods: tuple[str, ...] = ("dense", "int8", "flash")  # heads of the draft
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rules: tuple[str, ...] = ("coupling", "speculative")  # acceptance rules; at T = 0 only the first
    k: int = 4  # drafted tokens a check
    probes: int = 64  # clusters that FlashHead scores
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 16  # prompts of each kind
    new_tokens: int = 32  # tokens emitted a prompt
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        among("methods", self.methods, HEADS)
        at_least(self, per_kind=1, new_tokens=1)
        samplings(self.temperatures, self.rules, self.seed)
        drafting("flash", self.probes, k=self.k)


@dataclass(frozen=True)
class Drafting:
    """What drafted, and under which sampling."""

    draft: str
    method: str
    temperature: float
    rule: str
    k: int


@dataclass(frozen=True)
class Row(Kept, Drafting):
    """Counts of one method on all prompts of one kind; `repeated_n` is the mean share of n-grams that a text repeats."""

    repeated_1: float
    repeated_2: float
    repeated_3: float
    repeated_4: float


def measure(params: Params) -> Iterator[Row]:
    """Count accepted tokens of every draft, head, temperature and rule on prompts of several kinds."""
    for draft, sampling in settings(params):
        models = models_of(params.target, draft, "bfloat16", "dense")
        prompts = load_prompts(params.prompts or None, params.per_kind, models)
        for name in params.methods:
            method = drafting(name, params.probes, k=params.k)
            runs = contest(models, [Entry(name, method, sampling)], prompts, Turns(params.new_tokens, 1, 0))
            facts = (draft, name, sampling.temperature, sampling.rule, params.k)
            yield from (Row(*facts, kind, *counted(records)) for kind, records in by_kind(_bar(runs, len(prompts))).items())


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


def settings(params: Params) -> list[tuple[str, Sampling]]:
    """Drafts and samplings to run."""
    return list(product(params.drafts, samplings(params.temperatures, params.rules, params.seed)))


def points(params: Params) -> list[Params]:
    """One point a draft, temperature and rule."""
    return [replace(params, drafts=(d,), temperatures=(s.temperature,), rules=(s.rule,)) for d, s in settings(params)]


SMOKE = Params(drafts=("main",), methods=("dense", "flash"), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment(
    "acceptance", Params, Row, measure, measured=False, split=points, models=folders, presets={"smoke": SMOKE}
)

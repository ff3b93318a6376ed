"""What experiments on hierarchies share: one row a method and kind of prompt, with what every level judged and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

import torch

from flashspec.decoding.hierarchy import hispec, self_speculation
from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.measure import clock
from flashspec.measure.bench import text_digest
from flashspec.measure.contest import Entry, Turns, texts
from flashspec.measure.levels import Climb, StageCosts, Verified, climb, climbs_by_kind, predicted, stage_costs
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.scores import Sampling
from flashspec.study.experiments.end_to_end import BASELINE, Setting, divergences, evidence
from flashspec.study.pairs import at_least, models_of, samplings
from flashspec.study.rows import COUNTS, Compared, Counted, Timed

TIMED, SCREENED = "timed", "screened"


@dataclass(frozen=True)
class Stacked:
    """The exits and bursts of a hierarchy, and the sampling; exits are 0 where the method has none."""

    draft_exit: int
    verify_exit: int
    n_d: int
    n_i: int
    temperature: float
    rule: str


@dataclass(frozen=True)
class Writer:
    """What drafts, with which head."""

    draft: str
    method: str
    finalize: str
    head: str
    probes: int


@dataclass(frozen=True)
class Climbed:
    """What every level judged, in one turn, and what it costs; `stage` is "timed", or "screened" where no part was timed
    (costs 0).

    Level 1 is the lowest verifier, level 2 the next; `predicted` is the rate that the costs measured beside it and its own
    acceptance foretell.
    """

    stage: str
    actions_1: int
    waiting_1: int
    kept_1: int
    decided_1: int
    actions_2: int
    waiting_2: int
    kept_2: int
    decided_2: int
    seconds: float
    repeat: int
    draft_seconds: float
    head_seconds: float
    check_1_seconds: float
    check_2_seconds: float
    prefill_seconds: float
    predicted: float


@dataclass(frozen=True)
class Row(Compared, Climbed, Counted, Stacked, Writer):
    """One method on the prompts of one kind in one turn; twin and divergence columns are as in `end_to_end`."""


@dataclass(frozen=True)
class Schedules(Timed):
    """Parameters of experiments that tune self-speculation and HiSpec; exits are layers from the bottom."""

    draft: str = "main"  # draft model that is loaded beside the target
    self_exits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # exits of self-speculation
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)  # drafted tokens a check, of methods with one verifier
    draft_exits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)  # HiSpec's draft exits
    verify_exits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (1, 2, 3, 4)  # tokens drafted before the intermediate verifier acts
    n_is: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)  # tokens that wait before the whole model acts

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, self_exits=1, ks=1, draft_exits=1, verify_exits=1, n_ds=1, n_is=1, new_tokens=4)
        pairs_of(self.draft_exits, self.verify_exits)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """HiSpec's exits, all in rising order."""
        return pairs_of(self.draft_exits, self.verify_exits)


@dataclass(frozen=True)
class Plan:
    """How a set of methods is run: tokens and turns, whether float32 twins are decoded, and the checkpoint they need."""

    turns: Turns
    target: str
    draft: str
    twins: bool = False


def entry_of(name: str, method: Method, sampling: Sampling) -> Entry:
    """An entry whose name begins with the method's and tells every number that varies."""
    return Entry(f"{name} {method.exits} {method.k} {method.interval} {method.head} {method.probes or 0}", method, sampling)


def tuned_self(exits: Sequence[int], ks: Sequence[int], sampling: Sampling, **changes: Any) -> list[Entry]:
    """Self-speculation over its exits and k."""
    return [entry_of("self_speculation", self_speculation(e, k, **changes), sampling) for e in exits for k in ks]


def tuned_hispec(
    pairs: Sequence[tuple[int, int]], n_ds: Sequence[int], n_is: Sequence[int], sampling: Sampling, **changes: Any
) -> list[Entry]:
    """HiSpec over its exits, N_d and N_i."""
    found = [hispec(d, v, n_d, n_i, **changes) for d, v in pairs for n_d in n_ds for n_i in n_is]
    return [entry_of("hispec", method, sampling) for method in found]


def tuned_block(name: str, ks: Sequence[int], sampling: Sampling) -> list[Entry]:
    """A named method with one verifier over k."""
    return [entry_of(name, replace(METHODS[name], k=k), sampling) for k in ks]


def baseline(sampling: Sampling) -> Entry:
    """Plain decoding."""
    return Entry(BASELINE, METHODS["baseline"], sampling)


def pairs_of(draft_exits: Sequence[int], verify_exits: Sequence[int]) -> list[tuple[int, int]]:
    """All (draft, verify) exits in rising order. Raises ValueError where there is none."""
    found = [(d, v) for d in draft_exits for v in verify_exits if d < v]
    if not found:
        raise ValueError(f"no verify exit lies above a draft exit in {tuple(draft_exits)} and {tuple(verify_exits)}")
    return found


def timed(params: Any, entries_of: Callable[[Any, Sampling], list[Entry]]) -> Iterator[Row]:
    """Every sampling's entries in turns, with costs, twins and certificates; `params` are `Timed`, with a `draft`."""
    models = models_of(params.target, params.draft, params.dtype, params.weights)
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    plan = Plan(Turns(params.new_tokens, params.repeats, 1), params.target, params.draft, twins=True)
    for sampling in samplings(params.temperatures, params.rules, params.seed):
        yield from rows_of(models, entries_of(params, sampling), prompts, plan)


def rows_of(models: Models, entries: Sequence[Entry], prompts: Sequence[Prompt], plan: Plan) -> Iterator[Row]:
    """Run entries in turns and lay them out, with costs, twins and certificates."""
    sampling, named = entries[0].sampling, {entry.name: entry for entry in entries}
    climbs = list(_bar(climb(models, entries, prompts, plan.turns), len(entries) * len(prompts) * plan.turns.repeats))
    setting = Setting(plan.draft, sampling, models, named, list(prompts))
    certificates = divergences(setting, [each.record for each in climbs])
    twins = _twins(entries, prompts, plan) if plan.twins and sampling.rule == "coupling" else {}
    joined = climbs_by_kind(climbs)
    costs = {name: costs_of(models, named[name], joined, prompts[0]) for name in named}
    counts = {kind: sum(p.kind == kind for p in prompts) for kind in {p.kind for p in prompts}}
    for each in joined:
        key = (each.record.entry, each.record.kind)
        twin = {"stage": TIMED, "twin_digest": twins.get((key[0].split()[0], key[1]), ""), **evidence(certificates.get(key))}
        yield _row(each, named[key[0]], costs[key[0]], {"prompts": counts[key[1]], **twin})


def screened(models: Models, entries: Sequence[Entry], prompts: Sequence[Prompt], new_tokens: int) -> Iterator[Row]:
    """Every entry once, on the prompts in rotation; the whole decode is timed and no part of it."""
    turns, empty = Turns(new_tokens, 1, 0), {"prompts": 1, "twin_digest": "", **evidence(None)}
    pairs = list(zip(entries, cycle(prompts), strict=False))
    found = (each for entry, prompt in pairs for each in climb(models, [entry], [prompt], turns))
    for each, entry in zip(_bar(found, len(entries)), entries, strict=True):
        yield _row(each, entry, UNPRICED, {"stage": SCREENED, **empty})


def _bar(work: Iterable[Climb], total: int) -> Iterable[Climb]:
    from tqdm import tqdm

    return tqdm(work, total=total, desc="hierarchies", unit="decode", delay=2, leave=False)


def _twins(entries: Sequence[Entry], prompts: Sequence[Prompt], plan: Plan) -> dict[tuple[str, str], str]:
    """Text digests in float32 of the first entry of every method, on the first prompt of each kind."""
    models = models_of(plan.target, plan.draft, "float32", "dense")
    first = {entry.name.split()[0]: entry for entry in reversed(entries)}
    new, found = plan.turns.new_tokens, {}
    for name, entry in first.items():
        for prompt in first_of_each_kind(prompts, 1):
            found[name, prompt.kind] = text_digest(texts(models, entry, [prompt], new)[0])
    return found


def waits_of(climbs: Sequence[Climb], name: str) -> list[int]:
    """Tokens that wait for each level of an entry, to the nearest whole number of their mean."""
    mine = [each.levels for each in climbs if each.record.entry == name]
    totals = [(sum(j.waiting for j in level), sum(j.actions for j in level)) for level in zip(*mine, strict=True)]
    return [max(1, round(waiting / max(actions, 1))) for waiting, actions in totals]


class Priced(NamedTuple):
    """Costs of an entry's stages, and seconds of making them and reading the prompt."""

    costs: StageCosts
    prefill: float


UNPRICED = Priced(StageCosts(0.0, 0.0, ()), 0.0)


def costs_of(models: Models, entry: Entry, climbs: Sequence[Climb], prompt: Prompt) -> Priced:
    """Costs of an entry's stages behind a prompt and half of what it wrote, at the tokens that waited for each level."""
    record = next(each.record for each in climbs if each.record.entry == entry.name)
    waits = waits_of(climbs, entry.name)
    text = [*prompt.ids, *record.tokens][: len(prompt.ids) + len(record.tokens) // 2 + max([1, *waits])]
    ids = torch.tensor(prompt.ids[:-1] or prompt.ids)

    def start() -> list[Stage]:
        stages = build(entry.method, models, entry.sampling, len(text) + entry.method.k + 2)
        for stage in stages:
            stage.reader.read(ids)
        return stages

    costs = stage_costs(start(), text, waits, clock.Plan(3, 1))
    return Priced(costs, clock.median([clock.seconds_of(start) for _ in range(3)]))


def _row(each: Climb, entry: Entry, priced: Priced, more: dict[str, Any]) -> Row:
    record, method, costs = each.record, entry.method, priced.costs
    levels = [*each.levels, Verified(), Verified()][:2]
    exits, checks = [*method.exits, 0, 0], [*costs.checks, 0.0, 0.0]
    deep = len(each.levels) > 1
    return Row(
        draft=method.draft, method=entry.name.split()[0], finalize=method.finalize, head=method.head, probes=method.probes or 0,
        draft_exit=exits[0] if method.draft == "none" else 0, verify_exit=exits[1] if method.draft == "none" else exits[0],
        n_d=method.k if each.levels else 0, n_i=method.interval if deep else 0,
        temperature=entry.sampling.temperature, rule=entry.sampling.rule, kind=record.kind,
        seconds=record.seconds, repeat=record.repeat, draft_seconds=costs.draft, head_seconds=costs.head,
        check_1_seconds=checks[0], check_2_seconds=checks[1], prefill_seconds=priced.prefill,
        text_digest=text_digest(record.tokens),
        predicted=predicted(costs, each.levels, [method.k, *[method.interval] * 9][: len(each.levels)]) if costs.draft else 0.0,
        **{name: (vars(record.stats) | vars(record.score))[name] for name in COUNTS},
        **{f"{name}_{i}": value for i, j in enumerate(levels, start=1) for name, value in j._asdict().items()},
        **more,
    )  # fmt: skip

"""Who runs in a race: every method, head and schedule that its parameters mean, on the models they run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.heads.index import usable
from flashspec.heads.registry import HEADS
from flashspec.measure import clock
from flashspec.measure.bench import Text, time_run
from flashspec.measure.contest import Decoding, Entry
from flashspec.measure.levels import stage_costs, verified
from flashspec.measure.prompts import Prompt
from flashspec.measure.repetition import repeated_share
from flashspec.measure.trace import target_digest
from flashspec.sampling import Sampling
from flashspec.study.drafts import Pair, drafts_of, pair_of, short_name, target_of

BASELINE, DRAFT_MODEL = "baseline", "draft_model"
HIERARCHIES = ("hispec", "hispec_adaptive", "hispec_typical")
SHORT = {"dense": (DRAFT_MODEL, "dense"), "flash": (DRAFT_MODEL, "flash"), "hispec_flash": ("hispec", "flash")}
BASES = {DRAFT_MODEL: METHODS["dense"], **{n: METHODS[n] for n in ("lookup", "self_speculation", *HIERARCHIES)}}
FORMATS = {"int8": "int8", "int4": "int4"}  # of the rows that a head scores; other heads keep the weight's own


class Run(NamedTuple):
    """One timed decode: wall seconds, tokens, and counts by column."""

    seconds: float
    tokens: Text
    counts: dict[str, Any]


@dataclass(frozen=True)
class Racer:
    """A method on its models, and the columns that say who it is; `theirs` is transformers' pair where that engine decodes."""

    who: dict[str, Any]
    models: Models
    entry: Entry
    theirs: Any = None

    @property
    def name(self) -> str:
        """Unique within a race."""
        return self.entry.name

    def run(self, prompt: Prompt, new_tokens: int) -> Run:
        """Decode once against the clock; counting happens afterwards."""
        if self.theirs is not None:
            seconds, tokens = time_run(self.theirs.contestant(prompt.ids, new_tokens, self.who["k"] or None))
            return Run(seconds, tokens, {"emitted": len(tokens)})
        decoding = Decoding(self.models, self.entry, prompt, new_tokens)
        record = decoding.record()
        levels = [verified(decoding.events, stage) for stage in range(1, len(decoding.stages))]
        counts = {f"{name}_{i}": value for i, level in enumerate(levels[:2], 1) for name, value in level._asdict().items()}
        return Run(record.seconds, record.tokens, {**vars(record.stats), **vars(record.score), **counts})

    def parts(self, prompt: Prompt, before: Run) -> dict[str, float]:
        """Seconds of the parts of a round now, in the middle of the text of a run before this one."""
        if self.theirs is not None:
            return {}
        levels = range(1, 1 + sum(f"actions_{i}" in before.counts for i in (1, 2)))
        waits = [max(1, round(before.counts[f"waiting_{i}"] / max(1, before.counts[f"actions_{i}"]))) for i in levels]
        method, half = self.entry.method, len(prompt.ids) + len(before.tokens) // 2
        text = [*prompt.ids, *before.tokens][: half + max([1, *waits])]
        ids, stages = torch.tensor(text[:half], device=self.models.target.device), list[Any]()

        def start() -> None:
            stages[:] = build(method, self.models, self.entry.sampling, len(text) + method.k + 2)
            for stage in stages:
                stage.reader.read(ids[: len(prompt.ids) - 1])

        with torch.inference_mode():
            prefill = clock.seconds_of(start)
            stages[-1].reader.read(ids[:-1])
            finalize = clock.seconds_of(lambda: stages[-1].reader.read(ids))
        costs = stage_costs(stages, text, waits, clock.Plan(3, 1))
        found = {"prefill_seconds": prefill, "head_seconds": costs.head, "finalize_seconds": finalize}
        if not levels:
            return {**found, "step_seconds": costs.draft}
        checks = {f"check_{i}_seconds": seconds for i, seconds in zip(levels, costs.checks, strict=True)}
        return {**found, **checks, "burst_seconds": costs.draft * method.k}


def format_of(head: str, dtype: str) -> str:
    """The number format of the rows that a head scores, where the model's weights have this dtype."""
    return FORMATS.get(head, dtype)


def racers(params: Any, sampling: Sampling) -> list[Racer]:
    """Plain decoding first, then every method of parameters that name one target and one dtype."""
    target, dtype = params.target[0], params.dtype[0]
    alone = target_of(target, dtype, params.weights)
    wanted = list(methods(params, alone.target.config.layers))
    drafts = drafts_of(params.draft) if any(method.draft == "model" for _, method in wanted) else {}
    pairs = [_pair(target, name, str(folder), dtype, params.weights) for name, folder in drafts.items()]
    base = {**_base(params, alone, sampling), "weights": params.weights}
    found = [_racer({**base, "method": BASELINE}, alone, METHODS[BASELINE], sampling)]
    for name, method in wanted:
        for pair in pairs if method.draft == "model" else [None]:
            who = {**base, "method": name, **(facts(pair) if pair else {})}
            found.append(_racer(who, pair.models if pair else alone, method, sampling))
    return found


def facts(pair: Pair) -> dict[str, Any]:
    """The columns that say which draft a row is about."""
    found = dict(pair.facts)
    return {"draft_digest": found.pop("digest"), **found}


def methods(params: Any, layers: int) -> Iterator[tuple[str, Method]]:
    """Every method that the parameters mean, once, with its name in tables; ValueError where one has no exits to run at."""
    found: dict[tuple[str, Method], None] = {}
    for short in params.method:
        name, *own = SHORT.get(short, (short,))
        heads = ("dense",) if name == "lookup" else own or usable(params.head)
        for (exits, interval), head, k, finalize in product(schedules(params, name, layers), heads, params.k, params.finalize):
            method = replace(BASES[name], k=k, finalize=finalize, exits=exits, interval=interval)
            found |= {(name, replace(method, head=head, **options)): None for options in options_of(params, head)}
    yield from found


def schedules(params: Any, name: str, layers: int) -> list[tuple[tuple[int, ...], int]]:
    """Exits and intervals of a method, in rising order and below the target's top."""
    plain = BASES[name].interval
    if name not in ("self_speculation", *HIERARCHIES):
        return [((), plain)]
    exits: list[tuple[int, ...]] = [(e,) for e in params.exit if e < layers]
    if name in HIERARCHIES:
        exits = [(e, v) for (e,) in exits for v in params.verify_exit if e < v < layers]
    if not exits:
        raise ValueError(
            f"{name} has no exits in exit = {params.exit} and verify_exit = {params.verify_exit} that rise below the target's "
            f"{layers} layers; name others"
        )
    return list(product(exits, params.interval if name in HIERARCHIES else [plain]))


def options_of(params: Any, head: str) -> list[dict[str, Any]]:
    """What a head's own options are set to, one after the other."""
    takes = HEADS[head].options
    if "probes" in takes:
        return [{"probes": probes} for probes in params.probes]
    return [{"shortlist": shortlist} for shortlist in params.shortlist] if "shortlist" in takes else [{}]


def transformers_racers(params: Any, folder: Path) -> list[Racer]:
    """Plain and assisted generation by transformers, of the models of the first draft, written into a folder for it."""
    from flashspec.measure.peers import Peers

    target, dtype = params.target[0], params.dtype[0]
    (name, source), *_ = drafts_of(params.draft).items()
    pair = _pair(target, name, str(source), dtype, "dense")
    for which in ("target", "draft"):
        pair.models.model(which).save(folder / which, dtype)
    theirs = Peers.load(folder / "target", folder / "draft", getattr(torch, dtype))
    base = {**_base(params, pair.models, Sampling(rule=params.rule[0])), "engine": "transformers"}
    found = []
    for k in (0, *params.k):
        who = {**base, "weights": "dense", "method": DRAFT_MODEL if k else BASELINE, **(facts(pair) if k else {})}
        method = replace(BASES[DRAFT_MODEL], k=k) if k else METHODS[BASELINE]
        found.append(replace(_racer(who, pair.models, method, Sampling()), theirs=theirs))
    return found


def repeats_of(tokens: Sequence[int]) -> float:
    """Share of a text's 4-grams that stood in it before."""
    return repeated_share(tokens, 4)


def _base(params: Any, models: Models, sampling: Sampling) -> dict[str, Any]:
    return {
        "target": short_name(params.target[0]),
        "target_digest": target_digest(models.folders["target"]),
        "temperature": sampling.temperature,
        "rule": sampling.rule,
        "dtype": params.dtype[0],
    }


@lru_cache(maxsize=8)
def _pair(target: str, name: str, folder: str, dtype: str, weights: str) -> Pair:
    return pair_of(name, Path(folder), target_of(target, dtype, weights), short_name(target))


def _racer(who: dict[str, Any], models: Models, method: Method, sampling: Sampling) -> Racer:
    plain = method.writer_is_target
    columns = {
        "head": method.head,
        "format": format_of(method.head, who["dtype"]),
        "probes": method.probes or 0,
        "shortlist": method.shortlist or 0,
        "k": 0 if plain else method.k,
        "exits": " ".join(map(str, method.exits)),
        "interval": method.interval if len(method.exits) > 1 else 0,
        "finalize": method.finalize,
    }
    name = " ".join(str(who.get(c, "")) for c in ("engine", "method", "draft")) + " " + " ".join(map(str, columns.values()))
    return Racer({**who, **columns}, models, Entry(name, method, sampling))

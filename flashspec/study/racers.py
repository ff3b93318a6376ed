"""Who runs in a race: every method, head and schedule that its parameters mean, and their models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.heads.candidates import usable
from flashspec.heads.registry import HEADS
from flashspec.kernels import Packed
from flashspec.measure import clock
from flashspec.measure.parts import stage_costs
from flashspec.measure.peers import Llama, Peers
from flashspec.measure.prompts import Prompt
from flashspec.measure.runs import Run, timed
from flashspec.measure.trace import target_digest
from flashspec.models.transformer import Transformer
from flashspec.sampling import Sampling
from flashspec.study.drafts import chains_of, drafts_of, facts_of, pair_of, short_name, target_of

BASELINE, DRAFT_MODEL = "baseline", "draft_model"
LLAMA_CONTEXT = 4096  # tokens that its caches hold at most
SHORT = {"dense": (DRAFT_MODEL, "dense"), "flash": (DRAFT_MODEL, "flash"), "hispec_flash": ("hispec", "flash")}
BASES = {DRAFT_MODEL: METHODS["dense"], **{n: METHODS[n] for n in METHODS if n not in (BASELINE, *SHORT)}}


@dataclass(frozen=True)
class Racer:
    """A method on its models under a name unique in its race, and the columns that describe it.

    `theirs` is the pair of another engine, if that decodes.
    """

    name: str
    who: dict[str, Any]
    models: Models
    method: Method
    sampling: Sampling
    theirs: Any = None

    @property
    def owes_the_text(self) -> bool:
        """Whether its text must be plain decoding's, token for token."""
        return self.method.exact(self.sampling) and (self.sampling.rule == "coupling" or not self.sampling.temperature)

    def run(self, prompt: Prompt, new_tokens: int) -> Run:
        """Decode once against the clock; counting happens afterwards."""
        if self.theirs is None:
            return timed(self.models, self.method, self.sampling, prompt.ids, new_tokens)
        start, how = clock.now(), {"lookup": True} if self.who["method"] == "lookup" else {}
        found = self.theirs.greedy(prompt.ids, new_tokens, self.who["k"] or None, **how)
        tokens = tuple(found.pop("tokens"))
        return Run(clock.now() - start, tokens, {"emitted": len(tokens), **found})

    def parts(self, prompt: Prompt, before: Run) -> dict[str, float]:
        """Seconds of the parts of a round now, in the middle of the text of an earlier run."""
        found, levels = before.counts, [i for i in (1, 2) if f"actions_{i}" in before.counts]
        waits = [max(1, round(found[f"waiting_{i}"] / max(1, found[f"actions_{i}"]))) for i in levels]
        half = len(prompt.ids) + len(before.tokens) // 2
        text = [*prompt.ids, *before.tokens][: half + max([1, *waits])]
        ids, stages = torch.tensor(text[:half], device=self.models.target.device), list[Any]()

        def start() -> None:
            stages[:] = build(self.method, self.models, self.sampling, len(text) + self.method.k + 2)
            for stage in stages:
                stage.reader.read(ids[: len(prompt.ids) - 1])

        with torch.inference_mode():
            prefill = clock.seconds_of(start)
            stages[-1].reader.read(ids[:-1])
            finalize = clock.seconds_of(lambda: stages[-1].reader.read(ids))
        costs = {**stage_costs(stages, text, waits), "prefill": prefill, "finalize": finalize}
        token = costs.pop("token")
        costs |= {"burst": token * self.method.k} if waits else {"step": token}
        return {f"{name}_seconds": seconds for name, seconds in costs.items()}


def dtype_of(weight: Tensor | Packed) -> str:
    """The name of a weight's number format."""
    return weight.kind if isinstance(weight, Packed) else str(weight.dtype).removeprefix("torch.")


def format_of(head: str, dtype: str) -> str:
    """The number format of the rows that a head scores, where the model's weights have this dtype."""
    return head if head in ("int8", "int4") else dtype


def samplings(params: Any) -> list[Sampling]:
    """Samplings of parameters; greedy decoding is the same under every exact rule and comes once."""
    pairs = [(t, rule) for t, rule in product(params.temperature, params.rule) if t != 0 or rule == params.rule[0]]
    return [Sampling(t, seed=params.seed, rule=rule) for t, rule in pairs]


def racers(params: Any) -> list[Racer]:
    """Plain decoding, every method of parameters with one target, dtype and sampling, then other engines."""
    target = params.target[0]
    alone = target_of(target, params.dtype[0], params.weights)
    facts = {"target": short_name(target), "target_digest": target_digest(alone.folders["target"])}
    wanted = list(methods(params, alone.target.config.layers))
    needed = {method.draft for _, method in wanted}
    chains = [chain for chain in chains_of(params.draft) if ("cascade" if len(chain) > 1 else "model") in needed]
    if "cascade" in needed and all(len(chain) < 2 for chain in chains):
        raise ValueError("a cascade takes drafts joined by +, from the smallest: name some, such as SMALL+LARGER")
    beside = []
    for chain in chains:
        lowest, *others = (pair_of(target, name, folder, params.dtype[0], params.weights) for name, folder in chain.items())
        models = replace(lowest, between=tuple(each.model("draft") for each in others))
        beside.append((models, facts | facts_of("+".join(chain), models)))
    found = [_racer(params, BASELINE, METHODS[BASELINE], alone, facts)]
    for name, method in wanted:
        drafting = [each for each in beside if bool(each[0].between) == (name == "cascade")]
        sides = drafting if method.draft in ("model", "cascade") else [(alone, facts)]
        found += [_racer(params, name, method, *each) for each in sides]
    for engine, other in (("transformers", _transformers), ("llama.cpp", _llama)):
        found += other(params, {**facts, "engine": engine}) if engine in params.engine else []
    return found


def methods(params: Any, layers: int) -> Iterator[tuple[str, Method]]:
    """Every method that the parameters mean, once, by its name in tables; ValueError without exits."""
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
    base = BASES[name]
    levels = (params.exit, params.verify_exit)[: len(base.exits)]
    found = [exits for exits in product(*levels) if [*exits, layers] == sorted({*exits, layers})]
    if not found:
        raise ValueError(
            f"{name} has no exits in exit = {params.exit} and verify_exit = {params.verify_exit} that rise below "
            f"the target's {layers} layers; name others"
        )
    return list(product(found, params.interval if len(levels) > 1 or base.draft == "cascade" else (base.interval,)))


def options_of(params: Any, head: str) -> list[dict[str, Any]]:
    """The values that a head's own options take, one after the other."""
    name = next((name for name in ("probes", "shortlist") if name in HEADS[head].options), None)
    return [{name: value} for value in getattr(params, name)] if name else [{}]


def _transformers(params: Any, facts: dict[str, Any]) -> list[Racer]:
    """Plain and assisted generation by transformers, of the first draft's pair as a folder for it."""
    dtype = params.dtype[0]
    (name, source), *_ = drafts_of(params.draft).items()
    models = pair_of(params.target[0], name, source, dtype, "dense")
    with tempfile.TemporaryDirectory() as place:
        target, draft = Path(place) / "target", Path(place) / "draft"
        models.target.save(target, dtype)
        Transformer.load(source, dtype, weights="dense").save(draft, dtype)  # ours runs on rounded layers
        theirs = Peers(target, draft, getattr(torch, dtype))
    sides = {BASELINE: facts, DRAFT_MODEL: facts | facts_of(name, models)}
    return _theirs(replace(params, weights="dense"), theirs, models, sides)


def _llama(params: Any, facts: dict[str, Any]) -> list[Racer]:
    """Plain, drafting and lookup decoding by llama.cpp, with the first draft whose file it can read."""
    models, folder = target_of(params.target[0], params.dtype[0], params.weights), None
    sides, wanted = {BASELINE: facts}, [SHORT.get(short, (short,))[0] for short in params.method]
    if DRAFT_MODEL in wanted:
        (name, folder), *_ = drafts_of(params.draft).items()
        sides[DRAFT_MODEL] = facts | facts_of(name, pair_of(params.target[0], name, folder, params.dtype[0], params.weights))
    sides |= {"lookup": facts} if "lookup" in wanted else {}
    return _theirs(params, Llama(models.folders["target"], folder, min(models.context, LLAMA_CONTEXT)), models, sides)


def _theirs(params: Any, theirs: Any, models: Models, sides: dict[str, dict[str, Any]]) -> list[Racer]:
    """What another engine runs: the methods in `sides`, plain decoding once and the others at every k."""
    found = []
    for name, facts in sides.items():
        methods = [replace(BASES[name], k=k) for k in params.k] if name in BASES else [METHODS[name]]
        found += [_racer(params, name, method, models, facts) for method in methods]
    return [replace(racer, theirs=theirs) for racer in found]


def _racer(params: Any, name: str, method: Method, models: Models, facts: dict[str, Any]) -> Racer:
    (sampling,), dtype, writer = samplings(params), params.dtype[0], models.draft or models.target
    form = dtype_of(writer.vocabulary) if dtype == "auto" else dtype
    columns = {
        "head": method.head,
        "probes": method.probes or 0,
        "shortlist": method.shortlist or 0,
        "k": 0 if method.writer_is_target else method.k,
        "exits": " ".join(map(str, method.exits)),
        "interval": method.interval if len(method.exits) > 1 or models.between else 0,
        "finalize": method.finalize,
    }
    shared = {
        "format": format_of(method.head, form),
        "dtype": dtype,
        "weights": params.weights,
        "temperature": sampling.temperature,
        "rule": sampling.rule,
    }
    unique = " ".join(map(str, (facts.get("engine", ""), name, facts.get("draft", ""), *columns.values())))
    return Racer(unique, {**facts, "method": name, **columns, **shared}, models, method, sampling)

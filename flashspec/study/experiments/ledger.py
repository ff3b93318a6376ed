"""Where a decode's time goes: the closed ledger of instrumented runs. No throughput is read from this table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.state import Limits
from flashspec.measure.ledger import account
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least, folders, models_of


@dataclass(frozen=True)
class Params:
    """What to take apart; every method runs with every way to finalise."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ("main", "shallow")  # draft models: shipped names or folders
    methods: tuple[str, ...] = ("baseline", "dense", "flash")  # methods by name
    finalizes: tuple[str, ...] = ("eager", "deferred")  # when the target reads its own final token
    temperature: float = 0.0  # 0 is greedy
    k: int = 4  # drafted tokens a check
    probes: int = 64  # clusters that FlashHead scores
    prompts: str = ""  # prompts file; empty means the shipped one
    new_tokens: int = 48  # tokens emitted a prompt
    repeats: int = 3  # kept runs
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        among("methods", self.methods, METHODS)
        at_least(self, repeats=1, new_tokens=1)
        for finalize in self.finalizes:
            Method("model", k=self.k, finalize=finalize, probes=self.probes)
        Sampling(self.temperature)


class Row(NamedTuple):
    """Seconds of one part in one run over one prompt of each kind; `wall` is the same run timed around the whole."""

    draft: str
    method: str
    finalize: str
    temperature: float
    k: int
    part: str
    seconds: float
    wall: float
    emitted: int
    repeat: int


def measure(params: Params) -> Iterator[Row]:
    """Decode with every reader, head and rule wrapped, and give each second to one part."""
    sampling = Sampling(params.temperature, seed=params.seed)
    for draft in params.drafts:
        models = models_of(params.target, draft, "bfloat16", "dense")
        prompts = load_prompts(params.prompts or None, 1, models)
        for name, method in methods_of(params):
            context = max(len(p.ids) for p in prompts) + params.new_tokens
            limits = Limits(params.new_tokens, finalize=method.finalize)
            for repeat in range(-1, params.repeats):
                runs = [account(build(method, models, sampling, context), list(p.ids), limits) for p in prompts]
                facts = (draft, name, method.finalize, params.temperature, method.k if name != "baseline" else 0)
                wall, emitted = sum(r.wall for r in runs), sum(len(r.tokens) for r in runs)
                parts = sorted({part for run in runs for part in run.parts})
                sums = {part: sum(run.parts.get(part, 0.0) for run in runs) for part in parts}
                yield from (Row(*facts, part, s, wall, emitted, repeat) for part, s in sums.items() if repeat >= 0)


def methods_of(params: Params) -> list[tuple[str, Method]]:
    """Names and methods; plain decoding has nothing to finalise and comes once."""
    found = []
    for name in params.methods:
        plain = METHODS[name].writer_is_target
        for finalize in ("deferred",) if plain else params.finalizes:
            probes = params.probes if METHODS[name].head == "flash" else None
            found.append((name, replace(METHODS[name], finalize=finalize, k=params.k, probes=probes)))
    return found


SMOKE = Params(drafts=("main",), new_tokens=8, repeats=1)
EXPERIMENT = Experiment("ledger", Params, Row, measure, models=folders, presets={"smoke": SMOKE})

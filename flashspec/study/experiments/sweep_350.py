"""Hundreds of real runs over drafts, draft lengths, temperatures, heads and kinds of prompt, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.heads.registry import HEADS
from flashspec.measure.prompts import load_prompts
from flashspec.study import trials
from flashspec.study.drafts import digested, drafts_of, pairs_of
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.draft_parts import Workbench, between, kept
from flashspec.study.pairs import among, at_least, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial

NAME = "sweep_350"


@dataclass(frozen=True)
class Params(Raced):
    """What to sweep. A run is one draft, head, k and temperature on all prompts of one kind."""

    heads: tuple[str, ...] = ("dense", "int8", "flash")  # heads of the draft; plain decoding always runs beside them
    probes: int = 64  # clusters that FlashHead scores
    ks: tuple[int, ...] = (1, 2, 3, 4, 6)  # drafted tokens a check
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)  # 0 is greedy
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    per_kind: int = 24  # prompts of each kind, the first ones
    repeats: int = 1  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        among("heads", self.heads, HEADS)
        at_least(self, probes=1)


def measure(params: Params) -> Iterator[Trial]:
    """Run every draft, head, k, temperature and kind of prompt, with parts measured before the runs and after every prompt."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    for pair in pairs_of(params):
        for sampling in samplings(params.temperatures, (params.rule,), params.seed):
            writers = [(head, params.probes) for head in params.heads]
            field = [trials.baseline(pair, sampling), *trials.speculating(pair, sampling, writers, params.ks)]
            asked = between(NAME, params, sampling, 1 + params.repeats * len(prompts))
            bench = Workbench([pair], prompts[0], asked)
            records, parts = trials.alongside(field, [prompts] * params.repeats, bench, params.new_tokens)
            yield from trials.laid_out(records, field, trials.prompt_counts(prompts), kept(parts, asked))


def points(params: Params) -> list[Params]:
    """One point a draft and temperature, so that a killed sweep continues with the next."""
    names = params.drafts or tuple(drafts_of(()))
    return [replace(params, drafts=(name,), temperatures=(t,)) for name in names for t in params.temperatures]


SMOKE = Params(drafts=("shallow",), heads=("dense",), ks=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment(NAME, Params, Trial, measure, split=points, models=digested, presets={"smoke": SMOKE})

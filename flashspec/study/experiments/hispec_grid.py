"""Every schedule of self-speculation and HiSpec over a model's exits, timed in turns: the heat maps, and who was tuned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashspec.measure.contest import Entry, Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Plan, Row, Schedules, tuned_hispec, tuned_self
from flashspec.study.pairs import folders, models_of, samplings
from flashspec.study.rows import points


@dataclass(frozen=True)
class Params(Schedules):
    """Which schedules to time; exits are layers from the bottom."""

    rules: tuple[str, ...] = ("speculative",)  # acceptance rules
    new_tokens: int = 48  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 1  # kept turns


def measure(params: Params) -> Iterator[Row]:
    """Time self-speculation over exits and k, and HiSpec over exits, N_d and N_i, beside plain decoding."""
    models = models_of(params.target, params.draft, params.dtype, params.weights)
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    plan = Plan(Turns(params.new_tokens, params.repeats, warmup=0), params.target, params.draft)
    for sampling in samplings(params.temperatures, params.rules, params.seed):
        list(hierarchies.climb(models, [hierarchies.baseline(sampling)], prompts, Turns(params.new_tokens, 1, 0)))
        yield from hierarchies.rows_of(models, entries_of(params, sampling), prompts, plan)


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding and every schedule."""
    return [
        hierarchies.baseline(sampling),
        *tuned_self(params.self_exits, params.ks, sampling),
        *tuned_hispec(params.pairs, params.n_ds, params.n_is, sampling),
    ]


SMOKE = Params(
    self_exits=(2,), ks=(2,), draft_exits=(1, 2), verify_exits=(2, 4), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8
)
EXPERIMENT = Experiment("hispec_grid", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

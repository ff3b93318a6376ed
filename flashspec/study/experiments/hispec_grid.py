"""Every schedule of self-speculation and HiSpec over a model's exits, timed in turns: the heat maps, and who was tuned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.measure.contest import Entry, Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Plan, Row, pairs_of, tuned_hispec, tuned_self
from flashspec.study.pairs import at_least, folders, models_of, samplings


@dataclass(frozen=True)
class Params:
    """Which schedules to time; exits are layers from the bottom."""

    target: str = "reference"  # target model: shipped name or folder
    draft: str = "main"  # draft model that is loaded beside it
    self_exits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # exits of self-speculation
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)  # its drafted tokens a check
    draft_exits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)  # HiSpec's draft exits
    verify_exits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (1, 2, 3, 4)  # tokens drafted before the intermediate verifier acts
    n_is: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)  # tokens that wait before the whole model acts
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rules: tuple[str, ...] = ("speculative",)  # acceptance rules
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of the timed runs
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind
    new_tokens: int = 48  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 1  # kept turns
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        at_least(self, self_exits=1, ks=1, draft_exits=1, verify_exits=1, n_ds=1, n_is=1, repeats=1, per_kind=1, new_tokens=4)
        samplings(self.temperatures, self.rules, self.seed)
        pairs_of(self.draft_exits, self.verify_exits)


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
    pairs = pairs_of(params.draft_exits, params.verify_exits)
    return [
        hierarchies.baseline(sampling),
        *tuned_self(params.self_exits, params.ks, sampling),
        *tuned_hispec(pairs, params.n_ds, params.n_is, sampling),
    ]


def points(params: Params) -> list[Params]:
    """One point a temperature and rule."""
    found = samplings(params.temperatures, params.rules, params.seed)
    return [replace(params, temperatures=(s.temperature,), rules=(s.rule,)) for s in found]


SMOKE = Params(
    self_exits=(2,), ks=(2,), draft_exits=(1, 2), verify_exits=(2, 4), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8
)
EXPERIMENT = Experiment("hispec_grid", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

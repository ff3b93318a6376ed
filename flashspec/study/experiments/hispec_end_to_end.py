"""HiSpec against all its baselines by kind of prompt, each tuned: plain, two models, prompt lookup, self-speculation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flashspec.decoding.method import METHODS, Method
from flashspec.measure.contest import Entry, Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Plan, Row, entry_of, pairs_of, tuned_hispec, tuned_self
from flashspec.study.pairs import among, at_least, folders, models_of, samplings

METHODS_HERE = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "hispec_typical")


@dataclass(frozen=True)
class Params:
    """Which methods to run, each over a few schedules: the best of each is shown. Every method runs beside plain decoding."""

    target: str = "reference"  # target model: shipped name or folder
    draft: str = "main"  # draft of two-model speculation
    methods: tuple[str, ...] = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive")  # contestants
    ks: tuple[int, ...] = (2, 4, 6)  # drafted tokens a check, of methods with one verifier
    self_exits: tuple[int, ...] = (1, 2)  # exits of self-speculation
    draft_exits: tuple[int, ...] = (1, 2)  # HiSpec's draft exits
    verify_exits: tuple[int, ...] = (4,)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (2, 3)  # tokens drafted before the intermediate verifier acts
    n_is: tuple[int, ...] = (4, 6)  # tokens that wait before the whole model acts
    probes: int = 64  # clusters that FlashHead scores
    doubt: float = 0.3  # confidence below which an adaptive stage asks the one above
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rules: tuple[str, ...] = ("coupling", "speculative")  # acceptance rules; at T = 0 only the first
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of the timed runs; twins run in float32
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind
    new_tokens: int = 96  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 5  # kept turns
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        among("methods", self.methods, METHODS_HERE)
        at_least(self, ks=1, self_exits=1, draft_exits=1, verify_exits=1, n_ds=1, n_is=1, probes=1, repeats=1, new_tokens=4)
        samplings(self.temperatures, self.rules, self.seed)
        pairs_of(self.draft_exits, self.verify_exits)
        Method(exits=(1,), draft_doubt=self.doubt)


def measure(params: Params) -> Iterator[Row]:
    """Time every method and schedule in turns, with costs of every stage, float32 twins and certificates."""
    models = models_of(params.target, params.draft, params.dtype, params.weights)
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    plan = Plan(Turns(params.new_tokens, params.repeats, 1), params.target, params.draft, twins=True)
    for sampling in samplings(params.temperatures, params.rules, params.seed):
        yield from hierarchies.rows_of(models, entries_of(params, sampling), prompts, plan)


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding and every schedule of every method."""
    found = [entry for name in params.methods for entry in schedules(params, name, sampling)]
    return [hierarchies.baseline(sampling), *found]


def schedules(params: Params, name: str, sampling: Sampling) -> list[Entry]:
    """The schedules of one method."""
    if name in ("dense", "lookup"):
        return [entry_of(name, replace(METHODS[name], k=k), sampling) for k in params.ks]
    if name == "self_speculation":
        return tuned_self(params.self_exits, params.ks, sampling)
    changes: dict[str, dict[str, Any]] = {
        "hispec_flash": {"head": "flash", "probes": params.probes},
        "hispec_adaptive": {"draft_doubt": params.doubt, "verify_doubt": params.doubt},
        "hispec_typical": {"middle": "typical"},
    }
    pairs = pairs_of(params.draft_exits, params.verify_exits)
    plain = tuned_hispec(pairs, params.n_ds, params.n_is, sampling)
    return [entry_of(name, replace(entry.method, **changes.get(name, {})), sampling) for entry in plain]


def points(params: Params) -> list[Params]:
    """One point a temperature and rule."""
    found = samplings(params.temperatures, params.rules, params.seed)
    return [replace(params, temperatures=(s.temperature,), rules=(s.rule,)) for s in found]


SMOKE = Params(
    ks=(2,), self_exits=(2,), draft_exits=(2,), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8, repeats=1
)  # fmt: skip
EXPERIMENT = Experiment("hispec_end_to_end", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

"""Every schedule of self-speculation and HiSpec over a model's exits: screened in short decodes, the best timed in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashspec.measure.contest import Entry, Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Plan, Row, Schedules, tuned_block, tuned_hispec, tuned_self
from flashspec.study.pairs import at_least, folders, models_of, samplings
from flashspec.study.rows import points
from flashspec.study.screening import NUMBERS, finalists, foretold


@dataclass(frozen=True)
class Params(Schedules):
    """Which schedules to screen; the best of them are timed, beside two models and prompt lookup at every k."""

    rules: tuple[str, ...] = ("speculative",)  # acceptance rules
    new_tokens: int = 48  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 2  # kept turns
    screen_tokens: int = 24  # tokens emitted by the one decode that screens a schedule
    keep: int = 10  # schedules of each family that are timed; so are all bursts at HiSpec's best exits

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, screen_tokens=4, keep=1)


def measure(params: Params) -> Iterator[Row]:
    """Screen self-speculation over exits and k, and HiSpec over exits, N_d and N_i; time the best beside all baselines."""
    models = models_of(params.target, params.draft, params.dtype, params.weights)
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    plan = Plan(Turns(params.new_tokens, params.repeats, warmup=0), params.target, params.draft)
    for sampling in samplings(params.temperatures, params.rules, params.seed):
        list(hierarchies.climb(models, [hierarchies.baseline(sampling)], prompts, Turns(params.new_tokens, 1, 0)))
        entries = entries_of(params, sampling)
        screen = list(hierarchies.screened(models, entries, prompts, params.screen_tokens))
        yield from screen
        best = best_of(entries, screen, models.target.config.layers, params.keep)
        yield from hierarchies.rows_of(models, [*others(params, sampling), *best], prompts, plan)


def best_of(entries: list[Entry], screen: list[Row], layers: int, keep: int) -> list[Entry]:
    """The entries that pass the screening, in their order."""
    import pandas

    chosen = finalists(foretold(pandas.DataFrame([vars(row) for row in screen]), layers), keep)
    numbers = [tuple(getattr(row, name) for name in NUMBERS) for row in screen]
    return [entry for entry, found in zip(entries, numbers, strict=True) if found in chosen]


def others(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding, and two models and prompt lookup at every k."""
    blocks = [entry for name in ("dense", "lookup") for entry in tuned_block(name, params.ks, sampling)]
    return [hierarchies.baseline(sampling), *blocks]


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Every schedule of both families."""
    return [
        *tuned_self(params.self_exits, params.ks, sampling),
        *tuned_hispec(params.pairs, params.n_ds, params.n_is, sampling),
    ]


SMOKE = Params(
    self_exits=(2,), ks=(2,), draft_exits=(1, 2), verify_exits=(2, 4), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8,
    repeats=1, screen_tokens=8, keep=1,
)  # fmt: skip
EXPERIMENT = Experiment("hispec_grid", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

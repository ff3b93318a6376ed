"""A family of drafts end to end, in turns against each other, each at several draft lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashspec.measure.prompts import load_prompts
from flashspec.study import trials
from flashspec.study.drafts import FAMILY, digested, pairs_of
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.draft_parts import Workbench, between, kept
from flashspec.study.pairs import by_temperature, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial
from flashspec.train.family import FAMILY as POINTS

NAME = "draft_throughput"


@dataclass(frozen=True)
class Params(Raced):
    """Which drafts to race. Without `drafts`: every shipped one, and the finished ones below `family` if that folder is there."""

    family: str = FAMILY  # folder with more drafts, used when `drafts` is empty
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)  # drafted tokens a check
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    per_kind: int = 5  # prompts of each kind, the first ones, dealt to the turns
    repeats: int = 5  # turns, each on prompts of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_kind % self.repeats:
            raise ValueError(f"{self.per_kind} prompts of each kind cannot be dealt evenly to {self.repeats} turns")


def measure(params: Params) -> Iterator[Trial]:
    """Decode with every draft at every k and without one, all drafts in turns, parts measured before and after every prompt."""
    groups, pairs = trials.dealt(load_prompts(params.prompts or None, params.per_kind), params.repeats), pairs_of(params)
    for sampling in samplings(params.temperatures, (params.rule,), params.seed):
        racing = [c for pair in pairs for c in trials.speculating(pair, sampling, [("dense", None)], params.ks)]
        field = [trials.baseline(pairs[0], sampling), *racing]
        asked = between(NAME, params, sampling, 1 + sum(map(len, groups)))
        records, parts = trials.alongside(field, groups, Workbench(pairs, groups[0][0], asked), params.new_tokens)
        yield from trials.laid_out(trials.pooled(records), field, {trials.POOLED: len(groups[0])}, kept(parts, asked))


SMOKE = Params(drafts=("main", "shallow"), family="", ks=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8, repeats=1)
PIECES = (
    ("main", "shallow", "designed", "deep2-8", "wide-4"),
    ("wide2-3", "deep-5", "wide-3", "wide2-4", "deep-6"),
    ("wide-1", "wide-2", "wide2-2", "deep-7", "deep-8"),
    ("half", "quarter", "double", "pruned", "taught-by-text"),
)  # every draft, few in a race


def on_many_prompts(names: tuple[str, ...]) -> Params:
    """A race of a few drafts on all the prompts that runs may use."""
    places = tuple(f"{FAMILY}/{name}" if name in POINTS else name for name in names)
    return Params(drafts=places, family="", per_kind=24, repeats=6)


MANY = tuple(on_many_prompts(names) for names in PIECES)
PRESETS = {"smoke": SMOKE, **{f"many-{number}": params for number, params in enumerate(MANY, 1)}}
EXPERIMENT = Experiment(NAME, Params, Trial, measure, split=by_temperature, models=digested, presets=PRESETS)

"""A family of drafts end to end, in turns against each other, each at several draft lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashspec.measure.contest import Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import trials
from flashspec.study.drafts import FAMILY, digested, pairs_of
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.draft_parts import around
from flashspec.study.pairs import by_temperature, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial


@dataclass(frozen=True)
class Params(Raced):
    """Which drafts to race. Without `drafts`: every shipped one, and the finished ones below `family` if that folder is there."""

    family: str = FAMILY  # folder with more drafts, used when `drafts` is empty
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)  # drafted tokens a check
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4


def measure(params: Params) -> Iterator[Trial]:
    """Decode with every draft at every k and without one, all drafts in turns, parts measured between the turns."""
    prompts, pairs = load_prompts(params.prompts or None, params.per_kind), pairs_of(params)
    for sampling in samplings(params.temperatures, (params.rule,), params.seed):
        racing = [c for pair in pairs for c in trials.speculating(pair, sampling, [("dense", None)], params.ks)]
        field = [trials.baseline(pairs[0], sampling), *racing]
        before = parts_now(params, sampling, 0)
        for repeat in range(params.repeats):
            turns = Turns(params.new_tokens, 1, int(repeat == 0))
            records = list(trials.pooled(trials.race(field, prompts, turns, repeat)))
            after = parts_now(params, sampling, repeat + 1) if repeat in (params.repeats // 2, params.repeats - 1) else before
            yield from trials.laid_out(records, field, trials.prompt_counts(prompts), "+".join(dict.fromkeys((before, after))))
            before = after


def parts_now(params: Params, sampling: Sampling, turn: int) -> str:
    """Measure the parts of all drafts at this temperature; the name of their table."""
    shared = ("target", "drafts", "family", "ks", "rule", "weights", "dtype", "prompts", "new_tokens", "seed")
    return around(turn, temperature=sampling.temperature, **{name: getattr(params, name) for name in shared})


SMOKE = Params(drafts=("main", "shallow"), family="", ks=(2,), temperatures=(0.0,), new_tokens=8, repeats=1)
EXPERIMENT = Experiment(
    "draft_throughput", Params, Trial, measure, split=by_temperature, models=digested, presets={"smoke": SMOKE}
)

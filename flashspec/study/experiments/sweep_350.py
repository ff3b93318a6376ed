"""Hundreds of real runs over drafts, draft lengths, temperatures, heads and kinds of prompt, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.heads.registry import HEADS
from flashspec.measure.contest import Turns
from flashspec.measure.prompts import load_prompts
from flashspec.scores import Sampling
from flashspec.study import trials
from flashspec.study.drafts import digested, drafts_of, pairs_of
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.draft_parts import around
from flashspec.study.pairs import among, at_least, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial


@dataclass(frozen=True)
class Params(Raced):
    """What to sweep. A run is one draft, head, k and temperature on all prompts of one kind."""

    heads: tuple[str, ...] = ("dense", "int8", "flash")  # heads of the draft; plain decoding always runs beside them
    probes: int = 64  # clusters that FlashHead scores
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)  # drafted tokens a check
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)  # 0 is greedy
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    per_kind: int = 8  # prompts of each kind, the first ones
    new_tokens: int = 48  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 1  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        among("heads", self.heads, HEADS)
        at_least(self, probes=1)


def measure(params: Params) -> Iterator[Trial]:
    """Run every draft, head, k, temperature and kind of prompt, with parts measured before and after every turn."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    for pair in pairs_of(params):
        for sampling in samplings(params.temperatures, (params.rule,), params.seed):
            writers = [(head, params.probes) for head in params.heads]
            field = [trials.baseline(pair, sampling), *trials.speculating(pair, sampling, writers, params.ks)]
            before = parts_now(params, sampling, 0)
            for repeat in range(params.repeats):
                turns = Turns(params.new_tokens, 1, int(repeat == 0))
                records = list(trials.race(field, prompts, turns, repeat))
                after = parts_now(params, sampling, repeat + 1)
                yield from trials.laid_out(records, field, trials.prompt_counts(prompts), f"{before}+{after}")
                before = after


def parts_now(params: Params, sampling: Sampling, turn: int) -> str:
    """Measure the parts of this point's draft at this temperature; the name of their table."""
    shared = ("target", "drafts", "heads", "probes", "ks", "rule", "weights", "dtype", "prompts", "new_tokens", "seed")
    return around(turn, temperature=sampling.temperature, **{name: getattr(params, name) for name in shared})


def points(params: Params) -> list[Params]:
    """One point a draft and temperature, so that a killed sweep continues with the next."""
    names = params.drafts or tuple(drafts_of(()))
    return [replace(params, drafts=(name,), temperatures=(t,)) for name in names for t in params.temperatures]


SMOKE = Params(drafts=("shallow",), heads=("dense",), ks=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment("sweep_350", Params, Trial, measure, split=points, models=digested, presets={"smoke": SMOKE})

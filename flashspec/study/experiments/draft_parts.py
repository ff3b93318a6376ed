"""What the parts of a round cost, draft by draft, timed alone: the only seconds that a prediction of a run may use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from flashspec.decoding.method import Method, build
from flashspec.heads.registry import HEADS
from flashspec.measure import clock
from flashspec.measure.contest import Entry, texts
from flashspec.measure.costs import Place, measure_costs
from flashspec.measure.parts import Bench, prepare
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.scores import Sampling
from flashspec.study.drafts import Pair, digested, pairs_of
from flashspec.study.experiment import Experiment, run
from flashspec.study.pairs import among, at_least, drafting


@dataclass(frozen=True)
class Params:
    """Which drafts to time. `turn` tells apart tables that are measured before, between and after the same runs."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ()  # draft models: names or folders; empty means every shipped one
    family: str = ""  # folder with more drafts, used when `drafts` is empty
    heads: tuple[str, ...] = ("dense",)  # heads of the draft
    probes: int = 64  # clusters that FlashHead scores
    ks: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # draft lengths whose check is timed
    temperature: float = 0.0  # 0 is greedy
    rule: str = "coupling"  # acceptance rule
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of the timed parts
    prompts: str = ""  # prompts file; empty means the shipped one
    new_tokens: int = 64  # the parts are timed behind half as many tokens of the target's text
    repeats: int = 5  # kept turns
    seed: int = 0  # of sampling
    turn: int = 0  # number of the table among those of the same runs

    def __post_init__(self) -> None:
        among("heads", self.heads, HEADS)
        at_least(self, ks=1, probes=1, new_tokens=2, repeats=1, turn=0)
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, seed=self.seed, rule=self.rule)


class Row(NamedTuple):
    """Seconds of one part of one draft in one turn.

    Parts are those of `measure.costs.PairCosts`, "prefill KIND" (what a text costs besides its
    rounds: making the stages, both models read the prompt) and "read KIND" (the target does).
    """

    draft: str
    digest: str
    part: str
    seconds: float
    repeat: int


def measure(params: Params) -> Iterator[Row]:
    """Time every part of a round, and of beginning a text, for each draft and head."""
    prompts = first_of_each_kind(load_prompts(params.prompts or None), 1)
    for pair in pairs_of(params):
        for part, seconds in {**round_seconds(pair, prompts[0], params), **prefill_seconds(pair, prompts, params)}.items():
            yield from (Row(pair.name, pair.digest, part, s, repeat) for repeat, s in enumerate(seconds))


def round_seconds(pair: Pair, prompt: Prompt, params: Params) -> dict[str, list[float]]:
    """Seconds of each part by turn, behind a prompt and half of what the target writes there."""
    models, sampling = pair.models, params.sampling
    text = texts(models, Entry("", Method(), sampling), [prompt], params.new_tokens)[0][: params.new_tokens // 2]
    place = Place(prompt.ids, text, sampling)
    writers = [drafting(head, params.probes) for head in params.heads]
    turns = measure_costs(models, writers, params.ks, place, clock.Plan(params.repeats, 1)).turns
    return {part: [turn[part] for turn in turns] for part in turns[0]}


def prefill_seconds(pair: Pair, prompts: Sequence[Prompt], params: Params) -> dict[str, list[float]]:
    """Seconds that a text costs besides its rounds, on the first prompt of each kind, with the draft and without."""
    found = {}
    for name, method in (("prefill", drafting("dense")), ("read", Method())):
        for prompt in prompts:
            make = partial(build, method, pair.models, params.sampling, len(prompt.ids) + params.new_tokens + method.k)
            found[f"{name} {prompt.kind}"] = first_round(prepare(make, prompt.ids, ()), clock.Plan(params.repeats, 1))
    return found


def first_round(bench: Bench, plan: clock.Plan) -> list[float]:
    """Seconds by turn of making the stages and decoding a prompt's first round, less those of a later round's actions."""
    with torch.inference_mode():
        raw = clock.interleaved_seconds({"first": bench.first, **bench.actions}, plan)
    return [max(0.0, first - sum(later)) for first, *later in zip(*raw.values(), strict=True)]


def around(turn: int, **changes: Any) -> str:
    """Measure the parts now, store them under their own key, and give the name of that table."""
    return run(EXPERIMENT, Params(turn=turn, **changes), fresh=True).path.stem


SMOKE = Params(drafts=("shallow",), ks=(2,), new_tokens=8, repeats=2)
EXPERIMENT = Experiment("draft_parts", Params, Row, measure, models=digested, presets={"smoke": SMOKE})

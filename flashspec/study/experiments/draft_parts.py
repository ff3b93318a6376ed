"""What the parts of a round cost, draft by draft, timed alone: the only seconds that a prediction of a run may use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from flashspec.decoding.method import Method, build
from flashspec.heads.registry import HEADS
from flashspec.measure import clock
from flashspec.measure.contest import Entry, texts
from flashspec.measure.costs import PairParts, Setting, loop_seconds, parts_of, with_loop
from flashspec.measure.parts import Bench, prepare
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.scores import Sampling
from flashspec.study.drafts import Pair, digested, pairs_of
from flashspec.study.experiment import Experiment, run
from flashspec.study.pairs import among, at_least, drafting


@dataclass(frozen=True)
class Params:
    """Which drafts to time. Tables `between` the runs of another experiment are written by that one."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ()  # draft models: names or folders; empty means every shipped one
    family: str = ""  # folder with more drafts, used when `drafts` is empty
    heads: tuple[str, ...] = ("dense",)  # heads of the draft
    probes: int = 64  # clusters that FlashHead scores
    ks: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # draft lengths that are timed
    temperature: float = 0.0  # 0 is greedy
    rule: str = "coupling"  # acceptance rule
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of the timed parts
    prompts: str = ""  # prompts file; empty means the shipped one
    new_tokens: int = 64  # the parts are timed behind half as many tokens of the target's text
    calls: int = 3  # calls of a part in a turn, whose middle counts
    repeats: int = 8  # turns, one prompt of each kind after the other
    seed: int = 0  # of sampling
    between: str = ""  # the experiment between whose runs the turns were taken; empty means none

    def __post_init__(self) -> None:
        among("heads", self.heads, HEADS)
        at_least(self, ks=1, probes=1, new_tokens=2, calls=1, repeats=1)
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, seed=self.seed, rule=self.rule)


class Row(NamedTuple):
    """Seconds of one part of one draft in one turn, the middle of some calls, taken beside a prompt of this kind.

    Parts are those of `measure.costs.PairCosts`, timed behind one and the same text, and "prefill": what a text costs besides its
    rounds (making the stages, both models read the prompt), for the turn's own prompt.
    """

    draft: str
    part: str
    kind: str
    seconds: float
    repeat: int


def measure(params: Params) -> Iterator[Row]:
    """Time every part of a round, and of beginning a text, for each draft and head."""
    if params.between:
        raise ValueError(f"parts between the runs of {params.between} are timed by that experiment; run it afresh")
    prompts = first_of_each_kind(load_prompts(params.prompts or None), 1)
    bench = Workbench(pairs_of(params), prompts[0], params)
    for repeat in range(params.repeats):
        yield from bench.turn(prompts[repeat % len(prompts)])


class Workbench:
    """The parts of several drafts behind a prompt and half of what the target writes there, ready to be timed turn by turn."""

    def __init__(self, pairs: Sequence[Pair], prompt: Prompt, params: Params) -> None:
        self.params, self.repeat = params, 0
        self.drafts = [(pair, parts_beside(pair, prompt, params)) for pair in pairs]

    def turn(self, prompt: Prompt) -> list[Row]:
        """Seconds of all parts now, of the prefill on this prompt."""
        loop, rows = loop_seconds(), list[Row]()
        for pair, each in self.drafts:
            found = {**with_loop(each.turn(self.params.calls), loop), "prefill": prefill_seconds(pair, prompt, self.params)}
            rows += [Row(pair.name, part, prompt.kind, round(s, 9), self.repeat) for part, s in found.items()]
        self.repeat += 1
        return rows


def parts_beside(pair: Pair, prompt: Prompt, params: Params) -> PairParts:
    """The parts of one draft, behind a prompt and half of what the target writes there."""
    text = texts(pair.models, Entry("", Method(), params.sampling), [prompt], params.new_tokens)[0]
    place = Setting(prompt.ids, text[: params.new_tokens // 2], params.sampling)
    return parts_of(pair.models, [drafting(head, params.probes) for head in params.heads], params.ks, place, eager=False)


def prefill_seconds(pair: Pair, prompt: Prompt, params: Params) -> float:
    """Seconds that a text costs besides its rounds: those of its first round, stages made and prompt read, less a later one's."""
    method = drafting("dense", k=params.ks[0])
    make = partial(build, method, pair.models, params.sampling, len(prompt.ids) + params.new_tokens + method.k)
    return first_round(prepare(make, prompt.ids, ()), params.calls)


def first_round(bench: Bench, calls: int) -> float:
    """Seconds of making the stages and decoding a prompt's first round, less those of a later round's actions; middles."""
    with torch.inference_mode():
        raw = clock.interleaved_seconds({"first": bench.first, **bench.actions}, clock.Plan(calls, 0))
    first, *later = (clock.median(seconds) for seconds in raw.values())
    return max(0.0, first - sum(later))


def kept(rows: Iterable[Row], params: Params) -> str:
    """Store parts that were timed between the runs of another experiment under their own key; the name of that table."""
    found = list(rows)
    return run(replace(EXPERIMENT, function=lambda params: found), params, fresh=True).path.stem


def between(name: str, runs: Any, sampling: Sampling, turns: int) -> Params:
    """Parameters of the parts that are timed in so many turns between the runs of an experiment with such parameters."""
    shared = {each: getattr(runs, each) for each in Params.__dataclass_fields__ if hasattr(runs, each)}
    return Params(**{**shared, "temperature": sampling.temperature, "repeats": turns, "between": name})


SMOKE = Params(drafts=("shallow",), ks=(2,), new_tokens=8, calls=1, repeats=2)
EXPERIMENT = Experiment("draft_parts", Params, Row, measure, models=digested, presets={"smoke": SMOKE})

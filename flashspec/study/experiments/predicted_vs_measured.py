"""Tokens a check on prompts that no run has seen: what the throughput model knows about acceptance before it predicts a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flashspec.heads.registry import HEADS
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.measure.trace import Trace, record, replay_texts
from flashspec.study.drafts import FAMILY, Pair, digested, pairs_of, shipped, target_of
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least, by_temperature, drafting, samplings
from flashspec.study.rows import DraftFacts, Prompted, Replayed, Writing
from flashspec.theory import replayed_all


@dataclass(frozen=True)
class Params:
    """Which drafts to replay. Without `drafts`: every shipped one, and the finished ones below `family` if that folder is there.

    The drafts of a family are replayed with the first head alone.
    """

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ()  # draft models: names or folders
    family: str = FAMILY  # folder with more drafts, used when `drafts` is empty
    heads: tuple[str, ...] = ("dense", "int8", "flash")  # heads of the draft
    probes: int = 64  # clusters that FlashHead scores
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)  # drafted tokens a check
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)  # 0 is greedy
    rule: str = "coupling"  # acceptance rule
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of target and drafts
    prompts: str = ""  # prompts file; empty means the shipped one
    skip: int = 24  # prompts of each kind that the timed runs use and that are left out here
    per_kind: int = 104  # prompts of each kind, the ones behind those; fewer where there are no more
    new_tokens: int = 64  # tokens that the target writes for each
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        among("heads", self.heads, HEADS)
        at_least(self, ks=1, probes=1, skip=1, per_kind=1, new_tokens=2)
        samplings(self.temperatures, (self.rule,), self.seed)


@dataclass(frozen=True)
class Row(Replayed, Prompted, Writing, DraftFacts):
    """Expected counts of one draft, head and k on all unseen prompts of one kind."""


def measure(params: Params) -> Iterator[Row]:
    """Let the target write once behind unseen prompts, and count how every draft and head fares on these texts at every k."""
    told, alone = unseen(params), target_of(params.target, params.dtype, params.weights)
    for sampling in samplings(params.temperatures, (params.rule,), params.seed):
        trace = record(alone, told, sampling, params.new_tokens)
        for pair in pairs_of(params):
            for head in heads_for(pair, params):
                yield from rows_of(pair, head, trace, params)


def unseen(params: Params) -> list[Prompt]:
    """The prompts of each kind behind the first `skip`. Raises ValueError where a kind has none left."""
    found = load_prompts(params.prompts or None)
    used = set(first_of_each_kind(found, params.skip))
    left = first_of_each_kind([prompt for prompt in found if prompt not in used], params.per_kind)
    short = {prompt.kind for prompt in found} - {prompt.kind for prompt in left}
    if short:
        raise ValueError(f"all prompts of kind {min(short)!r} are among the first {params.skip}; lower skip or give more prompts")
    return left


def heads_for(pair: Pair, params: Params) -> Sequence[str]:
    """All heads for a shipped or named draft, the first one for a draft of the family."""
    return params.heads if params.drafts or pair.name in shipped() else params.heads[:1]


def rows_of(pair: Pair, head: str, trace: Trace, params: Params) -> Iterator[Row]:
    """Replay the recorded texts once and count them at every k."""
    writer = drafting(head, params.probes)
    stands = list(zip((told.kind for told in trace.told), replay_texts(trace, pair.models, writer), strict=True))
    for kind in dict.fromkeys(kind for kind, _ in stands):
        mine = [chances for name, chances in stands if name == kind]
        for k in params.ks:
            counts = replayed_all(mine, k)
            facts = (head, writer.probes or 0, k, trace.sampling.temperature, trace.sampling.rule, kind, len(mine))
            cells: list[Any] = [*pair.facts.values(), *facts, *counts]
            yield Row(*cells)


SMOKE = Params(drafts=("shallow",), family="", heads=("dense",), ks=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment(
    "predicted_vs_measured", Params, Row, measure, measured=False, split=by_temperature, models=digested, presets={"smoke": SMOKE}
)

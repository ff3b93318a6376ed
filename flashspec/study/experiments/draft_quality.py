"""How good a draft is by itself, and how many of its tokens the target keeps: two questions, asked of every draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.trace import Trace, record, replay_texts
from flashspec.model.transformer import Transformer
from flashspec.study.drafts import FAMILY, Pair, digested, pairs_of, target_of
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least, drafting, samplings
from flashspec.study.rows import DraftFacts, Replayed
from flashspec.theory import replayed_all

CHOICES = 4


@dataclass(frozen=True)
class Params:
    """Which drafts to judge. Without `drafts`: every shipped one, and the finished ones below `family` if it is there."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ()  # draft models: names or folders
    family: str = FAMILY  # folder with more drafts, used when `drafts` is empty
    k: int = 4  # drafted tokens a check
    temperatures: tuple[float, ...] = (0.0, 1.0)  # of the target's text; 0 is greedy
    rule: str = "coupling"  # acceptance rule
    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "float32"  # of target and drafts
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 8  # prompts of each kind
    new_tokens: int = 64  # tokens that the target writes for each
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        at_least(self, k=1, per_kind=1, new_tokens=2)
        samplings(self.temperatures, (self.rule,), self.seed)


@dataclass(frozen=True)
class Setting:
    """Which prompts, and how the target's texts are replayed."""

    kind: str
    temperature: float
    rule: str
    k: int


@dataclass(frozen=True)
class Merit:
    """What a model knows about texts of one kind, which no model was trained on.

    `loss` is its surprise in nats summed over `positions`, `right` how often its best token is the text's, `chosen` of `asked`
    how often it finds the true second half of a prompt the likeliest among those of CHOICES prompts.
    """

    positions: int
    loss: float
    right: int
    asked: int
    chosen: int


@dataclass(frozen=True)
class Row(Replayed, Merit, Setting, DraftFacts):
    """One draft on all prompts of one kind at one temperature: on the prompts' own text, and replayed on the target's texts."""


def measure(params: Params) -> Iterator[Row]:
    """Score every draft on held-out text by itself, and replay it against what the target writes."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    alone = target_of(params.target, params.dtype, params.weights)
    kinds = {kind: [p for p in prompts if p.kind == kind] for kind in dict.fromkeys(p.kind for p in prompts)}
    settings = samplings(params.temperatures, (params.rule,), params.seed)
    traces = [(s.temperature, record(alone, prompts, s, params.new_tokens)) for s in settings]
    for pair in pairs_of(params):
        merits = {kind: merit_of(pair.models.model("draft"), texts) for kind, texts in kinds.items()}
        for temperature, trace in traces:
            for kind, stands in replayed_by_kind(pair, trace).items():
                facts = (kind, temperature, params.rule, params.k, *vars(merits[kind]).values())
                cells: list[Any] = [*pair.facts.values(), *facts, *replayed_all(stands, params.k)]
                yield Row(*cells)


def replayed_by_kind(pair: Pair, trace: Trace) -> dict[str, list[list[float]]]:
    """The chances of every recorded token, text by text, by kind of prompt."""
    found: dict[str, list[list[float]]] = {}
    for told, stands in zip(trace.told, replay_texts(trace, pair.models, drafting("dense")), strict=True):
        found.setdefault(told.kind, []).append(stands)
    return found


@torch.inference_mode()
def merit_of(model: Transformer, prompts: Sequence[Prompt]) -> Merit:
    """Loss, best tokens, and choices of continuations on the texts of prompts of one kind."""
    positions, loss, right = 0, 0.0, 0
    for prompt in prompts:
        chances = log_chances(model, prompt.ids)
        wanted = torch.tensor(prompt.ids[1:])
        positions += len(wanted)
        loss -= float(chances.gather(1, wanted[:, None]).sum())
        right += int((chances.argmax(-1) == wanted).sum())
    asked = len(prompts) if len(prompts) > 1 else 0
    return Merit(positions, loss, right, asked, sum(chooses(model, prompts, number) for number in range(asked)))


def chooses(model: Transformer, prompts: Sequence[Prompt], number: int) -> bool:
    """Whether the true second half of a prompt is likelier a token than the second halves of the prompts behind it."""
    half = len(prompts[number].ids) // 2
    start = prompts[number].ids[:half]
    others = [prompts[(number + step) % len(prompts)] for step in range(min(CHOICES, len(prompts)))]
    means = [mean_chance(model, start, other.ids[len(other.ids) // 2 :]) for other in others]
    return max(means) == means[0]


def mean_chance(model: Transformer, start: Sequence[int], rest: Sequence[int]) -> float:
    """Mean log probability of the tokens of `rest` behind `start`."""
    chances = log_chances(model, [*start, *rest])[len(start) - 1 :]
    return float(chances.gather(1, torch.tensor(rest)[:, None]).mean())


def log_chances(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Log probabilities [n - 1, vocab] of each next token of a text."""
    return model(torch.tensor(ids)[None, :-1])[0].float().log_softmax(-1)


SMOKE = Params(drafts=("main", "shallow"), family="", temperatures=(0.0,), per_kind=2, new_tokens=8)
EXPERIMENT = Experiment("draft_quality", Params, Row, measure, measured=False, models=digested, presets={"smoke": SMOKE})

"""The family of drafts by itself: the quality of each as a language model, and the records of its training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.models import taught as shipped
from flashspec.measure.prompts import Prompt
from flashspec.models.config import from_hf
from flashspec.models.family import FAMILY as POINTS
from flashspec.models.transformer import Transformer
from flashspec.parameters import presets_of
from flashspec.study.drafts import FAMILY, drafts_of, facts_of, folders, pair_of, prompts_of
from flashspec.study.experiment import Experiment
from flashspec.study.frames import DataFrame, framed
from flashspec.study.tables import default_root
from flashspec.theory import replayed
from flashspec.typed import at_least

CHOICES = 4
DRAFTS = ("main", "shallow", "designed", *(f"{FAMILY}/{name}" for name in POINTS))


@dataclass(frozen=True)
class Params:
    """Which drafts to judge, on which texts. Every list also takes a single value."""

    target: tuple[str, ...] = ("reference",)  # the target of these drafts; only the first name counts
    draft: tuple[str, ...] = DRAFTS  # drafts: shipped names or folders; empty means every shipped one
    prompts: str = ""  # prompts file; empty means the shipped one
    kind: tuple[str, ...] = ()  # kinds of prompts; empty means all
    texts: int = 8  # prompts of each kind whose text is read

    def __post_init__(self) -> None:
        at_least(self, texts=1)


@dataclass(frozen=True)
class Row:
    """A draft's quality on texts of one kind, which no model was trained on.

    `loss` is summed over `positions`, in nats; `right` counts how often its best token is the text's; `chosen` of `asked` how
    often it finds the true second half of a prompt the likeliest among those of CHOICES prompts.
    """

    draft: str
    draft_digest: str
    layers: int
    body: int
    head_bytes: int
    steps: int | None
    kind: str
    positions: int
    loss: float
    right: int
    asked: int
    chosen: int


def measure(params: Params) -> Iterator[Row]:
    """Read held-out text with every draft: loss, best tokens, and choices of continuations."""
    for name, folder in drafts_of(params.draft).items():
        pair = pair_of(params.target[0], name, folder, "float32", "dense")
        prompts = prompts_of(params, params.texts, pair)
        for kind in dict.fromkeys(prompt.kind for prompt in prompts):
            texts = [prompt for prompt in prompts if prompt.kind == kind]
            yield Row(**facts_of(name, pair), kind=kind, **quality_of(pair.model("draft"), texts))


@torch.inference_mode()
def quality_of(model: Transformer, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Loss, best tokens and choices of continuations on the texts of prompts of one kind, by column."""
    positions, loss, right = 0, 0.0, 0
    for prompt in prompts:
        chances, wanted = log_chances(model, prompt.ids), torch.tensor(prompt.ids[1:])
        positions += len(wanted)
        loss -= float(chances.gather(1, wanted[:, None]).sum())
        right += int((chances.argmax(-1) == wanted).sum())
    asked = len(prompts) if len(prompts) > 1 else 0
    chosen = sum(chooses(model, prompts, number) for number in range(asked))
    return {"positions": positions, "loss": loss, "right": right, "asked": asked, "chosen": chosen}


def chooses(model: Transformer, prompts: Sequence[Prompt], number: int) -> bool:
    """Whether the true second half of a prompt is likelier per token than the second halves of the next prompts."""
    start, means = prompts[number].ids[: len(prompts[number].ids) // 2], []
    for step in range(min(CHOICES, len(prompts))):
        other = prompts[(number + step) % len(prompts)].ids
        rest = other[len(other) // 2 :]
        chances = log_chances(model, [*start, *rest])[len(start) - 1 :]
        means.append(float(chances.gather(1, torch.tensor(rest)[:, None]).mean()))
    return max(means) == means[0]


def log_chances(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Log probabilities [n - 1, vocab] of each next token of a text."""
    return model(torch.tensor(ids)[None, :-1])[0].float().log_softmax(-1)


def records(k: int = 4, root: Path | None = None) -> DataFrame:
    """One line per recorded point, the highest greedy TAR at k first, counted from its recorded proposals."""
    lines = []
    for path in sorted(((root or default_root()) / "family").glob("*/proposals.json")):
        config, design = from_hf(_read(path.with_name("config.json"))), _read(path.with_name("design.json")).get("design", {})
        sizes = (config.layers, config.heads, config.ffn, config.body_parameters)
        lines.append((path.parent.name, *sizes, design.get("steps"), replayed(accepted(path.parent), k).tar))
    found = framed(lines, ["draft", "layers", "heads", "ffn", "body", "steps", "TAR"])
    return found.sort_values("TAR", ascending=False)


def taught(root: Path | None = None) -> DataFrame:
    """One line per checkpoint of a draft that borrows, shipped or recorded: tokens learned from (repeats counted), acceptance
    at T = 1 (an upper estimate), and how often its best token was the target's, on held-out conversations."""
    places = (*shipped().values(), *((root or default_root()) / "drafts").glob("*"))
    lines = []
    for path in sorted(places, key=lambda place: place.name):
        record = _read(path / "record.json")
        for line in map(json.loads, (path / "curve.jsonl").read_text(encoding="utf-8").splitlines()):
            tokens = 1e-6 * line["step"] * record["texts_a_step"] * record["length"]
            lines.append((path.name, record["layers"], " ".join(map(str, record["kept"])), tokens, line["accept"], line["agree"]))
    return framed(lines, ["draft", "layers", "kept", "million tokens", "accepted", "agreed"])


def accepted(record: Path) -> list[list[float]]:
    """Which tokens of a record's texts its draft proposes: 1 or 0, as `theory.replayed` counts them."""
    pairs = (zip(text["tokens"], text["proposed"], strict=True) for text in _read(record / "proposals.json")["texts"])
    return [[float(token == proposed) for token, proposed in pair] for pair in pairs]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


EXPERIMENT = Experiment("family", Params, Row, measure, measured=False, models=folders, presets=presets_of("family", Params))

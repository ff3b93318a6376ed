"""A draft by design: cut out of the target, wide and shallow, then distilled on what the target writes (Yan et al. 2024)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashspec.decoding.models import Models
from flashspec.models.config import ModelConfig
from flashspec.models.folder import read_json
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, refuse_input, refuse_taken, write_json
from flashspec.provenance import model_digests
from flashspec.theory.checks import at_least
from flashspec.train.distill import Distillation, DraftLoss, Teacher, acceptance
from flashspec.train.losses import cross_entropy
from flashspec.train.outputs import OwnText, write
from flashspec.train.package import write_digests
from flashspec.train.prune import Choice, Form, choose, importance, prune
from flashspec.train.trainer import Run, Schedule

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
CALIBRATION, HELD_OUT = 16, 0.1


@dataclass(frozen=True)
class Design:
    """What is cut out of a target and how it is trained; the same design gives the same draft."""

    layers: int = 2  # layers kept
    heads: int = 0  # query heads kept in each layer; 0 means all
    kv_heads: int = 0  # key/value heads kept in each layer; 0 means all
    ffn: int = 0  # feed-forward channels kept in each layer; 0 means all
    steps: int = 200  # training steps; 0 only prunes
    decay: int = 150  # steps of falling learning rate at the end
    warmup: int = 10  # steps of rising learning rate at the start
    muon_lr: float = 0.01  # learning rate of the matrices
    adam_lr: float = 1e-3  # learning rate of embedding, head and norms
    sequences: int = 4  # texts a step
    length: int = 256  # tokens a text
    written: int = 512  # texts that the target writes, once
    prompt: int = 32  # tokens of the given text in front of each
    distilled: bool = True  # learn the target's distributions, or only its texts
    variation: float = 1.0  # weight of total variation beside the KL divergence
    save_every: int = 50  # steps between checkpoints
    dtype: str = "float32"  # of the matrix products in training; bfloat16 is faster where the processor multiplies it
    seed: int = 1  # of windows, texts and batches

    def __post_init__(self) -> None:
        at_least(self, layers=1, heads=0, kv_heads=0, ffn=0, steps=0, sequences=1, length=2, written=1, prompt=1)
        if self.prompt > self.length:
            raise ValueError(f"a text of {self.length} tokens has no room for a prompt of {self.prompt}; shorten the prompt")
        _ = self.distillation

    @property
    def form(self) -> Form:
        """What stays of the target."""
        return Form(self.layers, self.heads, self.kv_heads, self.ffn)

    @property
    def schedule(self) -> Schedule:
        """Steps and learning rates."""
        decay = min(self.decay, self.steps)
        return Schedule(self.steps, decay, self.warmup, self.muon_lr, self.adam_lr, self.save_every)

    @property
    def distillation(self) -> Distillation:
        """How a batch is drawn and what the loss weighs."""
        return Distillation(self.layers, self.schedule, self.sequences, self.length, self.variation, self.seed, dtype=self.dtype)


class Place(NamedTuple):
    """Where a draft is made, where it is finished, and where designs of one target share its texts."""

    work: Path
    out: Path
    shared: Path | None = None


def windows(stream: np.ndarray, count: int, length: int) -> Tensor:
    """Ids [count, length], evenly spaced over a stream."""
    starts = np.linspace(0, len(stream) - length, count).astype(int)
    return torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype(np.int64))


def check_fit(stream: np.ndarray, target: ModelConfig, design: Design) -> None:
    """Refuse a form that is no part of the target, a text too short to hold a tenth out, texts longer than the context."""
    design.form.of(target)
    if design.length + 1 > target.context:
        raise ValueError(f"texts of {design.length} tokens do not fit the target's context of {target.context}; shorten length")
    needed = int((design.length + 2) / HELD_OUT) + 1
    if len(stream) < needed:
        raise ValueError(f"the text has {len(stream)} tokens and a design with length {design.length} needs {needed}; give more")


def design_draft(
    target: Transformer, stream: np.ndarray, folder: Path, design: Design, shared: Path | None = None
) -> Transformer:
    """Prune a dense float32 target on a stream of ids, then distil; run again in the same folder, it continues.

    The last tenth of the stream is held out and scores the draft. Designs of one target, seed and batch may keep its texts
    and rows in one `shared` folder. Raises ValueError for a folder of another design.
    """
    check_fit(stream, target.config, design)
    _claim(folder, facts_of(target.config, design))
    cut = int(len(stream) * (1 - HELD_OUT))
    train, held = stream[:cut], stream[cut:]
    draft = prune(target, design.form, _choice(target, train, folder, design))
    run = Run(draft, design.schedule, folder)
    run.resume()
    if run.step < design.steps:
        place = shared or folder
        texts = write(target, train, place / "texts", (design.written, design.length + 1, design.prompt), design.seed)
        loss = _loss(target, draft, texts, place, design)
        run.train(loss, lambda: acceptance(target, draft, held, 4, design.length))
    return draft.eval().requires_grad_(False)


def facts_of(target: ModelConfig, design: Design) -> dict[str, Any]:
    """What tells one draft from another: its design and the shape of its target."""
    return {"design": asdict(design), "target": asdict(target)}


def _told(out: Path) -> dict[str, Any]:
    """What a finished folder says about itself."""
    return {name: read_json(out / name, "") for name in ("design.json", "speculative.json") if (out / name).is_file()}


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Make the folder this design's; refuse one that holds another."""
    path, told = folder / "design.json", json.loads(json.dumps(facts))
    if path.exists() and read_json(path, "") != told:
        raise ValueError(f"{folder.name} holds another design; give --work another folder, or remove that one")
    refuse_taken(folder, "design.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(told, path)


def _choice(target: Transformer, stream: np.ndarray, folder: Path, design: Design) -> Choice:
    """What stays, chosen once and kept beside the run."""
    path = folder / "choice.json"
    if not path.exists():
        found = importance(target, windows(stream, CALIBRATION, design.length))
        write_json(choose(found, target.config, design.form)._asdict(), path)
    return Choice(**read_json(path, ""))


class TextLoss:
    """Loss of one step on the target's texts alone, without its distributions."""

    def __init__(self, draft: Transformer, texts: OwnText, design: Design) -> None:
        self.draft, self.texts, self.design = draft, texts, design

    def __call__(self, step: int) -> Tensor:
        ids = self.texts.draw(step, self.design.sequences, self.design.length)
        with self.design.distillation.computing():
            return cross_entropy(self.draft, self.draft.rows(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))


def _loss(target: Transformer, draft: Transformer, texts: OwnText, folder: Path, design: Design) -> DraftLoss | TextLoss:
    if not design.distilled:
        return TextLoss(draft, texts, design)
    return DraftLoss(draft, Teacher(target, texts, folder / "teacher"), design.distillation)


def make_draft(models: Models, stream: np.ndarray, place: Place, design: Design, about: dict[str, Any]) -> Path:
    """The draft of a loaded target as a finished folder with `about` as its speculative.json; the same one is left alone.

    Raises what `design_draft` and `fresh_folder` raise, before anything is made.
    """
    check_fit(stream, models.target.config, design)
    source, told = models.folders["target"], json.loads(json.dumps(facts_of(models.target.config, design)))
    if _told(place.out) == {"design.json": told, "speculative.json": about}:
        return place.out
    refuse_input(place.work, [source])
    with fresh_folder(place.out, [source, place.work]) as part:
        draft = design_draft(models.target, stream, place.work, design, place.shared)
        package(draft, source, place.work, part, about)
    return place.out


def package(draft: Transformer, source: Path, work: Path, out: Path, about: dict[str, Any]) -> None:
    """The finished draft as a Hugging Face folder with its target's tokenizer, a vLLM configuration, curve and digests."""
    draft.save(out)
    for name in TOKENIZER:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    write_json(about, out / "speculative.json")
    for name in ("curve.jsonl", "choice.json", "design.json"):
        if (work / name).exists():
            shutil.copyfile(work / name, out / name)
    (out / "README.md").write_text(card(source, work, draft.config), encoding="utf-8")
    write_digests(out)


def speculative(out: Path, k: int) -> dict[str, Any]:
    """What vLLM's --speculative-config takes."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return {"method": "draft_model", "model": str(out), "num_speculative_tokens": k}


def card(source: Path, work: Path, config: ModelConfig) -> str:
    """The model card: what it was cut from, how it was trained, and where its digests are."""
    about = json.loads((work / "design.json").read_text(encoding="utf-8")) | {"target_files": model_digests(source)}
    facts = f"{config.layers} layers, {config.body_parameters:,} parameters in layers, width {config.hidden}"
    lines = ["# A draft made by flashspec", "", f"Pruned from {source.name} and distilled on its own texts: {facts}.", ""]
    return "\n".join([*lines, "```json", json.dumps(about, indent=2), "```", ""])


def encoded(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """Texts as one stream of ids; ValueError where there is no tokenizer."""
    if tokenizer is None:
        raise ValueError("the target's folder has no tokenizer.json; a draft is designed on text, so add it")
    return np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in tokenizer.encode_batch(list(texts))])

"""Other targets of one shape: a model trained a little further on text of one kind, and one that starts from another seed."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashspec.decoding.models import Models
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_json
from flashspec.theory.checks import at_least
from flashspec.train.design import TOKENIZER, encoded, windows
from flashspec.train.distill import slice_of
from flashspec.train.losses import cross_entropy
from flashspec.train.package import write_digests
from flashspec.train.target import initialise
from flashspec.train.trainer import Batches, Run, Schedule

HELD_OUT, SCORED = 0.1, 4


@dataclass(frozen=True)
class Tuning:
    """How a variant is trained; the same tuning of the same target on the same text gives the same variant."""

    steps: int = 100
    decay: int = 50
    sequences: int = 4
    length: int = 256
    muon_lr: float = 0.002
    adam_lr: float = 3e-4
    seed: int = 2

    def __post_init__(self) -> None:
        at_least(self, steps=1, sequences=1, length=2)

    @property
    def schedule(self) -> Schedule:
        """Steps and learning rates."""
        decay = min(self.decay, self.steps)
        return Schedule(self.steps, decay, min(10, self.steps), self.muon_lr, self.adam_lr, save_every=self.steps)


FINE_TUNED, INDEPENDENT = "fine-tuned", "independent"
VARIANTS = {FINE_TUNED: Tuning(), INDEPENDENT: Tuning(muon_lr=0.02, adam_lr=3e-3)}


def variant(name: str, models: Models, texts: Iterable[str], folder: Path, steps: int = 100) -> Path:
    """A variant of a target, made once: its weights tuned on docstrings of texts, or fresh ones of its shape trained on them."""
    tuning = replace(VARIANTS[name], steps=steps, decay=steps // 2)
    if name == FINE_TUNED:
        return tuned(models.target, models.folders["target"], encoded(models.tokenizer, docstrings(texts)), folder / name, tuning)
    fresh = Transformer(models.target.config)
    initialise(fresh, tuning.seed)
    return tuned(fresh, models.folders["target"], encoded(models.tokenizer, texts), folder / name, tuning)


def docstrings(sources: Iterable[str], words: int = 12) -> Iterator[str]:
    """The docstrings of Python sources that have at least this many words; what does not parse is left out."""
    for source in sources:
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= words:
                    yield text + "\n\n"


class TextLoss:
    """Loss of one step on plain text."""

    def __init__(self, model: Transformer, batches: Batches, tuning: Tuning) -> None:
        self.model, self.batches, self.tuning = model, batches, tuning

    def __call__(self, step: int) -> Tensor:
        return loss_on(self.model, self.batches.draw(step, self.tuning.sequences, self.tuning.length))


def loss_on(model: Transformer, ids: Tensor) -> Tensor:
    """Mean surprise, in nats, at the next tokens of texts [n, length + 1]."""
    return cross_entropy(model, model.rows(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))


def tuned(target: Transformer, source: Path, stream: np.ndarray, folder: Path, tuning: Tuning) -> Path:
    """Train a copy of a dense target further on a stream of ids, and write it as a checkpoint folder beside `source`'s tokenizer.

    The last tenth of the stream is held out and scored. A finished folder is left alone; a stopped run continues. Raises
    ValueError where the stream is too short.
    """
    needed = int((tuning.length + 2) / HELD_OUT) + 1
    if len(stream) < needed:
        raise ValueError(f"the text has {len(stream)} tokens and tuning at length {tuning.length} needs {needed}; give more")
    if (folder / "digests.json").exists():
        return folder
    model, cut = slice_of(target, target.config.layers), int(len(stream) * (1 - HELD_OUT))
    run = Run(model, tuning.schedule, folder.with_name(folder.name + ".work"))
    run.resume()
    held = windows(stream[cut:], SCORED, tuning.length + 1)
    run.train(TextLoss(model, Batches(stream[:cut], tuning.seed), tuning), lambda: {"loss": scored(model, held)})
    return written(model, source, folder, tuning)


@torch.no_grad()
def scored(model: Transformer, held: Tensor) -> float:
    """Loss on held-out texts."""
    return float(loss_on(model, held))


def written(model: Transformer, source: Path, folder: Path, tuning: Tuning) -> Path:
    """The folder of a variant: weights, tokenizer, how it was tuned, curve and digests."""
    with fresh_folder(folder, [source]) as part:
        model.save(part)
        for name in TOKENIZER:
            if (source / name).exists():
                shutil.copyfile(source / name, part / name)
        write_json(asdict(tuning), part / "tuning.json")
        shutil.copyfile(folder.with_name(folder.name + ".work") / "curve.jsonl", part / "curve.jsonl")
        write_digests(part)
    return folder

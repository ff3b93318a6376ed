"""Exits with a layer of their own on a frozen model, trained on its distribution over conversations that it writes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flashspec.decoding.models import load
from flashspec.measure.trace import target_digest
from flashspec.models.exits import ExitLayer, exits_file, save_exits
from flashspec.models.folder import GGUF
from flashspec.models.transformer import Transformer
from flashspec.models.writing import copy_checkpoint, fresh_folder, sign, write_json
from flashspec.train.conversations import LayerRecipe, turns_of, written
from flashspec.train.lessons import agreement, lessons, read_lesson, sampled_divergence
from flashspec.train.trainer import Run, Schedule, computing

HELD = 40  # of so many files of lessons, one is held out
SAVED = 100  # steps between two checkpoints
BLIND = 8  # tokens at the start of a text that nothing is learned from
SHARPEST = 1.0  # norm that gradients are cut to


def train_exit_layers(source: Path, out: Path, work: Path, recipe: LayerRecipe) -> dict[int, tuple[float, float]]:
    """Train exits of the model at `source` and write `out`, a folder of that model with them; acceptance and agreement by layer.

    Texts, lessons and runs lie in `work`, where a killed run goes on. Raises ValueError for a model without chat template, for
    exits outside it, and for one that transformers computes; FileExistsError where `out` has files.
    """
    with fresh_folder(out, [source]) as part:
        models = load(source, None, "bfloat16", "cpu", "dense")
        model = models.target
        if not isinstance(model, Transformer):
            raise ValueError("exits are trained on architectures that flashspec computes itself; this one runs on transformers")
        if recipe.layers[-1] >= model.config.layers:
            raise ValueError(f"exits must lie below the model's {model.config.layers} layers, got {recipe.layers}")
        recipe = replace(recipe, length=min(recipe.length, model.config.context))
        claim(work, {"model": target_digest(source), "layers": recipe.layers, "texts": recipe.texts, "seed": recipe.seed})
        texts = written(model, turns_of(source, models.tokenizer), work / "texts", recipe)
        files = lessons(model, texts, work / "lessons", recipe.layers)
        exits = {layer: ExitLayer.like_the_last(model) for layer in recipe.layers}
        found = {layer: learned(model, exits[layer], files, work / f"exit-{layer}", recipe) for layer in exits}
        copy_checkpoint(source, part)
        path = exits_file(part / source.name if source.suffix == GGUF else part)
        save_exits(exits, path)
        sign(part, path.name)
    return found


def claim(work: Path, facts: dict[str, Any]) -> None:
    """Note in a folder whose work lies there; ValueError where it is another recipe's."""
    card, facts = work / "recipe.json", json.loads(json.dumps(facts))
    if card.is_file() and json.loads(card.read_bytes()) != facts:
        raise ValueError(f"{work} holds the work on another model, or with other exits, texts or seed; give another --work")
    work.mkdir(parents=True, exist_ok=True)
    write_json(facts, card)


def learned(model: Transformer, own: ExitLayer, files: list[Path], folder: Path, recipe: LayerRecipe) -> tuple[float, float]:
    """Train, or go on training, one exit in a folder named after its layer; what it is like on held-out texts."""
    weight, key = model.head_weight.detach(), f"rows.{folder.name.rpartition('-')[2]}"
    held, rest = files[HELD - 1 :: HELD] or files[:1], [path for i, path in enumerate(files) if i % HELD != HELD - 1]

    def rows(lesson: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with computing("bfloat16"):
            found = own(lesson[key].float())[:, BLIND:].flatten(0, 1)
        return found, {name: lesson[name][:, BLIND:].flatten(0, 1) for name in ("top", "logs")}

    def learn(step: int) -> float:
        epoch, number = divmod(step, len(rest))
        found, wanted = rows(read_lesson(rest[np.random.default_rng((recipe.seed, epoch)).permutation(len(rest))[number]]))
        leaf = found.detach().to(weight.dtype).requires_grad_()
        loss = sampled_divergence(weight, leaf, wanted, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
        found.backward(leaf.grad.to(found.dtype) if leaf.grad is not None else None)
        nn.utils.clip_grad_norm_(own.parameters(), SHARPEST)
        return loss

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        scores = [agreement(weight, found.to(weight.dtype), wanted) for found, wanted in (rows(read_lesson(p)) for p in held)]
        return {"accept": float(np.mean([a for a, _ in scores])), "agree": float(np.mean([s for _, s in scores]))}

    schedule = Schedule(recipe.steps, recipe.steps // 2, min(50, recipe.steps), 0.0, recipe.rate, save_every=SAVED)
    run = Run(own, schedule, folder)
    run.resume()
    run.train(learn, evaluate)
    scores = evaluate()
    return scores["accept"], scores["agree"]

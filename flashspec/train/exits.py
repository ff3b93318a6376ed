"""Train a frozen model's exits towards its own distribution: a low-rank step on any text, or a layer on its own conversations.

The model is not changed; `load` finds the exits in one file of a copy of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from flashspec.decoding.models import Models, load
from flashspec.models.exits import Exit, ExitAdapter, ExitLayer, check_layers, exits_file, save_exits
from flashspec.models.transformer import Transformer
from flashspec.models.writing import extended
from flashspec.train import corpus
from flashspec.train.conversations import LessonRecipe, Lessons, heard, taught
from flashspec.train.lessons import Pupil, learned
from flashspec.train.texts import windows

WINDOWS, HELD = 2, 8  # of a text in a lesson, and in those that are held out
STEPS = LessonRecipe(rank=64, steps=150, length=256, rate=2e-3)  # as low-rank steps are trained


def default_layers(depth: int) -> tuple[int, ...]:
    """HiSpec's exits for this many layers: an eighth and a quarter of the depth (Kumar et al. 2025)."""
    if depth < 3:
        raise ValueError(f"a model of {depth} layers has no room for two exits; name one with --exits")
    first = max(1, depth // 8)
    return first, max(first + 1, depth // 4)


def check_ours(model: Transformer) -> Transformer:
    """The model; ValueError where only transformers computes it."""
    if not isinstance(model, Transformer):
        raise ValueError("training needs an architecture that flashspec computes itself; this one runs on transformers")
    return model


def fitted(model: Transformer, recipe: LessonRecipe) -> LessonRecipe:
    """The recipe with its exits filled in, and texts that fit the model; ValueError for exits that cannot be trained on it."""
    config = check_ours(model).config
    exits = check_layers(recipe.exits or default_layers(config.layers))
    if exits[-1] >= config.layers:
        raise ValueError(f"exits must lie below the model's {config.layers} layers, got {exits}")
    return replace(recipe, exits=exits, length=min(recipe.length, config.context))


def train_exits(
    source: Path, out: Path, work: Path, recipe: LessonRecipe, text: Path | None = None
) -> dict[int, tuple[float, float]]:
    """Train exits of the model at `source` and write `out`, a copy of it with them; returns acceptance and agreement by layer.

    Low-rank steps learn from the text, or the standard library. Layers learn from lessons, kept in `work` with their runs,
    where a killed run continues. Raises ValueError for a short text, a model without tokenizer or chat template, for exits
    outside it, and for one that transformers computes; FileExistsError where `out` has files.
    """
    with extended(source, out, exits_file(source).name) as path, TemporaryDirectory() as scratch:
        models = load(source, None, "bfloat16", "cpu", "dense")
        model, recipe = models.target, fitted(models.target, recipe)
        exits, place = untrained(model, recipe), Path(scratch) if recipe.rank else work
        lessons = of_text(models, text, recipe) if recipe.rank else taught(models, source, work, recipe)
        found = {n: learned(pupil(model, own, n), lessons, place / f"exit-{n}", recipe) for n, own in exits.items()}
        save_exits(exits, path)
    return found


def untrained(model: Transformer, recipe: LessonRecipe) -> dict[int, Exit]:
    """Exits by layer at the start of their training."""
    torch.manual_seed(recipe.seed)
    return {n: ExitAdapter(model, recipe.rank) if recipe.rank else ExitLayer.like_the_last(model) for n in recipe.exits}


def pupil(model: Transformer, own: Exit, layer: int) -> Pupil:
    """An exit in training, with the rows of its layer from the lessons."""

    def said(lesson: dict[str, Tensor]) -> Tensor:
        return own(lesson[f"rows.{layer}"].float())

    return Pupil(own, model.head_weight.detach(), said)


def of_text(models: Models, text: Path | None, recipe: LessonRecipe) -> Lessons:
    """Lessons on windows of a text, or of the standard library, a new one for every step; the last twentieth is held out."""
    stream = corpus.encoded(models.tokenizer, corpus.sources([text] if text else (), corpus.FILES), 4 * recipe.length)
    parts = np.split(stream, [-max(recipe.length, len(stream) // 20)])
    rest, held = (
        [partial(heard, models.target, ids, recipe.exits) for ids in windows(part, count, recipe.length).split(WINDOWS)]
        for part, count in zip(parts, (WINDOWS * recipe.steps, HELD), strict=True)
    )
    return Lessons(rest, held)

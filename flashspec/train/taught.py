"""Layers taught by lessons: exits of a frozen model, and drafts whose embedding, norm and head stay those of a base."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from flashspec.decoding.models import Models, check_pair, load
from flashspec.models.checkpoint import opened, save_borrowed
from flashspec.models.exits import Exit, ExitAdapter, ExitLayer, check_layers, exits_file, save_exits
from flashspec.models.tokenizer import check_tokenizers
from flashspec.models.transformer import Transformer
from flashspec.models.writing import carry, extended, fresh_folder, write_digests, write_json
from flashspec.provenance import model_digests, short_hash
from flashspec.train import corpus
from flashspec.train.design import choose, importance
from flashspec.train.lessons import TEXTS, LessonRecipe, Lessons, Pupil, heard, learned, taught
from flashspec.train.texts import windows
from flashspec.train.trainer import quick_dtype

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
        models = load(source, None, quick_dtype(), "cpu", "dense")
        model, recipe = models.target, fitted(models.target, recipe)
        exits, place = untrained(model, recipe), Path(scratch) if recipe.rank else work
        lessons = of_text(models, text, recipe) if recipe.rank else taught(models, source, work, recipe)
        found = {
            n: learned(exit_pupil(model, own, n), lessons, place / f"exit-{n}-{short_hash(asdict(recipe))}", recipe)
            for n, own in exits.items()
        }
        save_exits(exits, path)
    return found


def untrained(model: Transformer, recipe: LessonRecipe) -> dict[int, Exit]:
    """Exits by layer at the start of their training."""
    torch.manual_seed(recipe.seed)
    return {n: ExitAdapter(model, recipe.rank) if recipe.rank else ExitLayer.like_the_last(model) for n in recipe.exits}


def exit_pupil(model: Transformer, own: Exit, layer: int) -> Pupil:
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


def train_borrowed(target: Path, base: Path, out: Path, work: Path, recipe: LessonRecipe) -> tuple[float, float]:
    """Cut layers out of the model at `base`, train them on what `target` writes, and write `out` (Yan et al. 2024).

    Returns acceptance at T = 1 and agreement on held-out lessons. Lessons and runs are kept in `work`, where a killed run
    continues and other drafts of that target find the lessons. Raises ValueError for models of different vocabularies, of too
    few layers, without chat template, or computed by transformers only; FileExistsError where `out` has files.
    """
    with fresh_folder(out, [target, base]) as part:
        check_tokenizers(target, base)
        shape = opened(base).config
        if recipe.layers >= shape.layers:
            raise ValueError(f"a draft must have fewer layers than its base, which has {shape.layers}, got {recipe.layers}")
        models = load(target, None, quick_dtype(), "cpu", "dense")
        check_pair(replace(shape, layers=recipe.layers), check_ours(models.target).config)
        recipe = replace(recipe, length=min(recipe.length, shape.context, models.target.config.context))
        lessons = taught(models, target, work, recipe)
        lends = models.target if base == target else check_ours(load(base, None, quick_dtype(), "cpu", "dense").target)
        del models.target
        kept = choose(importance(lends, lessons.rest[0]()["ids"].long()), shape, replace(shape, layers=recipe.layers)).layers
        layers, key = copied(lends, kept), short_hash([model_digests(base), asdict(recipe)])
        folder = work / f"{base.name}-{recipe.layers}-{key}"
        accept, agree = learned(draft_pupil(lends, layers), lessons, folder, recipe)
        save_borrowed(layers, base, part)
        about = {**asdict(recipe), "texts_a_step": TEXTS, "kept": kept, "accept": accept, "agree": agree}
        write_json(about, part / "record.json")
        carry(folder, part, ("curve.jsonl",))
        write_digests(part)
    return accept, agree


def copied(base: Transformer, kept: list[int]) -> nn.ModuleList:
    """Float32 copies of some of a model's layers, from the bottom."""
    return copy.deepcopy(nn.ModuleList(base.blocks[number] for number in kept)).float().requires_grad_()


def draft_pupil(base: Transformer, layers: nn.ModuleList) -> Pupil:
    """A borrowing draft in training: embedding, norm and head stay as they are."""

    def said(lesson: dict[str, Tensor]) -> Tensor:
        x = base.place(base.embed(lesson["ids"].long()), 0).to(torch.float32)
        for layer in layers:
            x = layer(x, base.rope)
        return base.norm(x)

    return Pupil(layers, base.head_weight.detach(), said)

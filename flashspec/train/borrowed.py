"""Drafts for published models: layers of a base, taught by the target's conversations; the rest stays the base's."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from flashspec.decoding.models import check_pair, load
from flashspec.models.checkpoint import opened, save_borrowed
from flashspec.models.tokenizer import check_tokenizers
from flashspec.models.transformer import Transformer
from flashspec.models.writing import carry, fresh_folder, write_digests, write_json
from flashspec.train.conversations import TEXTS, LessonRecipe, taught
from flashspec.train.exits import check_ours
from flashspec.train.lessons import Pupil, learned
from flashspec.train.prune import choose, importance


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
        models = load(target, None, "bfloat16", "cpu", "dense")
        check_pair(replace(shape, layers=recipe.layers), check_ours(models.target).config)
        recipe = replace(recipe, length=min(recipe.length, shape.context, models.target.config.context))
        lessons = taught(models, target, work, recipe)
        lends = models.target if base == target else check_ours(load(base, None, "bfloat16", "cpu", "dense").target)
        del models.target
        kept = choose(importance(lends, lessons.rest[0]()["ids"].long()), shape, replace(shape, layers=recipe.layers)).layers
        layers, folder = copied(lends, kept), work / f"{base.stem}-{recipe.layers}"
        accept, agree = learned(pupil(lends, layers), lessons, folder, recipe)
        save_borrowed(layers, base, part)
        about = {**asdict(recipe), "texts_a_step": TEXTS, "kept": kept, "accept": accept, "agree": agree}
        write_json(about, part / "record.json")
        carry(folder, part, ("curve.jsonl",))
        write_digests(part)
    return accept, agree


def copied(base: Transformer, kept: list[int]) -> nn.ModuleList:
    """Float32 copies of some of a model's layers, from the bottom."""
    return copy.deepcopy(nn.ModuleList(base.blocks[number] for number in kept)).float().requires_grad_()


def pupil(base: Transformer, layers: nn.ModuleList) -> Pupil:
    """A borrowing draft in training: embedding, norm and head stay as they are."""

    def said(lesson: dict[str, Tensor]) -> Tensor:
        x = base.place(base.embed(lesson["ids"].long()), 0).to(torch.float32)
        for layer in layers:
            x = layer(x, base.rope)
        return base.norm(x)

    return Pupil(layers, base.head_weight.detach(), said)

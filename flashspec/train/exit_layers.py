"""Exits with a layer of their own on a frozen model, trained on its distribution over conversations that it writes itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from flashspec.decoding.models import load
from flashspec.models.exits import ExitLayer, exits_file, save_exits
from flashspec.models.folder import GGUF
from flashspec.models.transformer import Transformer
from flashspec.models.writing import copy_checkpoint, fresh_folder, sign
from flashspec.train.conversations import LessonRecipe, taught
from flashspec.train.exits import check_exits
from flashspec.train.lessons import Pupil, learned


def train_exit_layers(source: Path, out: Path, work: Path, recipe: LessonRecipe) -> dict[int, tuple[float, float]]:
    """Train exits of the model at `source` and write `out`, a folder of that model with them; acceptance and agreement by layer.

    Lessons and runs lie in `work`, where a killed run goes on. Raises ValueError for a model without chat template, for
    exits outside it, and for one that transformers computes; FileExistsError where `out` has files.
    """
    with fresh_folder(out, [source]) as part:
        models = load(source, None, "bfloat16", "cpu", "dense")
        model = check_exits(models.target, recipe.exits)
        recipe = replace(recipe, length=min(recipe.length, model.config.context))
        files = taught(models, source, work, recipe)
        exits = {layer: ExitLayer.like_the_last(model) for layer in recipe.exits}
        found = {layer: learned(pupil(model, exits[layer], layer), files, work / f"exit-{layer}", recipe) for layer in exits}
        copy_checkpoint(source, part)
        path = exits_file(part / source.name if source.suffix == GGUF else part)
        save_exits(exits, path)
        sign(part, path.name)
    return found


def pupil(model: Transformer, own: ExitLayer, layer: int) -> Pupil:
    """An exit as lessons teach it, with the rows of its layer that they hold."""

    def said(lesson: dict[str, Tensor]) -> Tensor:
        return own(lesson[f"rows.{layer}"].float())

    return Pupil(own, model.head_weight.detach(), said)

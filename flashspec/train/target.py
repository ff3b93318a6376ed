"""The reference target: an early-exit model trained from scratch after LayerSkip (Elhoushi et al. 2024).

It grows while it trains: the upper layers start as the identity and join in stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.config import ModelConfig
from flashspec.models.exits import rows_at
from flashspec.models.transformer import Transformer
from flashspec.train.texts import Texts, overlap
from flashspec.train.trainer import Run, Schedule, cross_entropy, disagreement

REFERENCE = ModelConfig(
    family="qwen3", vocab_size=16384, hidden=384, ffn=1024, layers=16, heads=6, kv_heads=2, head_dim=64,
    context=1024, rope_theta=10000.0, tied=True, bos=0, eos=(0,),
)  # fmt: skip
WINDOW = 512


@dataclass(frozen=True)
class Recipe:
    """How the target is trained. `growth` maps a step to the number of layers in use from then on.

    `exits` are trained in turn, one per step, on `exit_rows` rows: on the text with `exit_weight`, and with `imitation_weight`
    on the model's own final distribution, which is what verification compares them with.
    """

    schedule: Schedule
    growth: tuple[tuple[int, int], ...] = ((0, 6), (450, 10), (700, 16))
    exits: tuple[int, ...] = (2, 4)
    exit_weight: float = 0.3
    imitation_weight: float = 0.0
    exit_rows: int = 512
    layer_dropout: float = 0.1
    sequences: int = 8
    length: int = 256
    seed: int = 0

    def depth(self, step: int) -> int:
        """Layers in use at a step."""
        return [layers for first, layers in self.growth if first <= step][-1]


def initialise(model: Transformer, seed: int) -> None:
    """Seeded weights; output projections are zero, so every block starts as the identity."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.02 if "embed" in name else weight.shape[1] ** -0.5 / 1.7, generator=dice)
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                weight.zero_()


def learn_reference(model: Transformer, recipe: Recipe, texts: Texts, step: int) -> float:
    """Gradients of one step: full depth, plus one exit in turn on a share of the rows; returns the loss."""
    ids = texts.draw(step, recipe.sequences, recipe.length).to(model.device)
    labels = ids[:, 1:].reshape(-1)
    early, final = rows_with_dropout(model, recipe, ids[:, :-1], step)
    some = torch.from_numpy(np.random.default_rng((recipe.seed, step, 1)).permutation(len(labels))[: recipe.exit_rows])
    loss = cross_entropy(model, final, labels)
    loss = loss + recipe.exit_weight * cross_entropy(model, early[some], labels[some])
    if recipe.imitation_weight:
        loss = loss + recipe.imitation_weight * disagreement(model, early[some], final[some])
    loss.backward()
    return loss.item()


def rows_with_dropout(model: Transformer, recipe: Recipe, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Rows [n, hidden] at the step's exit and at full depth, with layers dropped at random.

    A layer's chance to be dropped grows with depth from 0 to `layer_dropout` (LayerSkip, section 3.1).
    """
    depth, exit_layer = recipe.depth(step), recipe.exits[step % len(recipe.exits)]
    dice = np.random.default_rng((recipe.seed, step, 2)).random(depth)
    kept = dice >= recipe.layer_dropout * (2.0 ** (np.arange(depth) / max(1, depth - 1)) - 1)
    x = early = model.embed(ids)
    for number, layer in enumerate(model.blocks[:depth], start=1):
        x = layer(x, model.rope) if kept[number - 1] else x
        early = x if number == exit_layer else early
    return early.flatten(0, 1), x.flatten(0, 1)


def exit_scores(model: Transformer, held_out: np.ndarray, depths: tuple[int, ...], windows: int = 8) -> dict[str, float]:
    """Held-out loss at each depth and the acceptance of each exit by the deepest, as `overlap` finds them."""

    def scored(ids: Tensor) -> dict[str, Tensor]:
        return {f"_{depth}": F.linear(model.norm(r), model.head_weight) for depth, r in rows_at(model, ids, depths).items()}

    return overlap(held_out, windows, WINDOW, scored)


def train_target(data: Path, folder: Path, recipe: Recipe, branch: Path | None = None) -> Transformer:
    """Train the target in `folder` on the corpus in `data`, or continue; a new run starts from `branch`."""
    model = Transformer(REFERENCE)
    initialise(model, recipe.seed)
    run = Run(model, recipe.schedule, folder)
    held = np.load(data / "held_out.npy")
    texts = Texts(recipe.seed, np.load(data / "train.npy"))
    depths = (*recipe.exits, model.config.layers)
    run.train(partial(learn_reference, model, recipe, texts), lambda: exit_scores(model, held, depths), branch)
    return model

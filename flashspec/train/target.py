"""The reference target: an early-exit model trained from scratch after LayerSkip (Elhoushi et al. 2024).

Depth grows while it trains: the upper layers start as the identity (their output projections are zero) and join in
stages, so early steps cost less and the lower layers carry as much of the text as they can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.config import ModelConfig
from flashspec.models.transformer import Transformer
from flashspec.train.losses import cross_entropy, disagreement
from flashspec.train.trainer import Batches, Run, Schedule

REFERENCE = ModelConfig(
    family="qwen3", vocab_size=16384, hidden=384, ffn=1024, layers=16, heads=6, kv_heads=2, head_dim=64,
    context=1024, rope_theta=10000.0, tied=True, bos=0, eos=(0,),
)  # fmt: skip


WINDOW = 512


@dataclass(frozen=True)
class Recipe:
    """How the target is trained. `growth` maps a first step to the number of layers in use from then on.

    `exits` are trained in turn, one a step, on `exit_rows` rows: on the text with `exit_weight`, and with
    `imitation_weight` on the model's own final distribution, which is what verification compares them with.
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


class TargetLoss:
    """Loss of one step: full depth, plus one exit in turn on a share of the rows, with depth-increasing layer dropout."""

    def __init__(self, model: Transformer, recipe: Recipe, batches: Batches) -> None:
        self.model, self.recipe, self.batches = model, recipe, batches

    def __call__(self, step: int) -> Tensor:
        recipe = self.recipe
        ids = self.batches.draw(step, recipe.sequences, recipe.length).to(self.model.embed.weight.device)
        labels = ids[:, 1:].reshape(-1)
        exit_layer = recipe.exits[step % len(recipe.exits)]
        early, final = self._rows(ids[:, :-1], step, exit_layer)
        some = torch.from_numpy(np.random.default_rng((recipe.seed, step, 1)).permutation(len(labels))[: recipe.exit_rows])
        loss = cross_entropy(self.model, final, labels)
        loss = loss + recipe.exit_weight * cross_entropy(self.model, early[some], labels[some])
        if recipe.imitation_weight:
            loss = loss + recipe.imitation_weight * disagreement(self.model, early[some], final[some])
        return loss

    def _rows(self, ids: Tensor, step: int, exit_layer: int) -> tuple[Tensor, Tensor]:
        """Rows [n, hidden] at the exit and at full depth."""
        depth = self.recipe.depth(step)
        dropped = self._dropped(step, depth)
        x = self.model.embed(ids)
        early = x
        for number, layer in enumerate(self.model.layers[:depth]):
            if number not in dropped:
                x = layer(x, self.model.rope)
            if number + 1 == exit_layer:
                early = x
        return early.flatten(0, 1), x.flatten(0, 1)

    def _dropped(self, step: int, depth: int) -> set[int]:
        """Layers skipped by this step, with probability growing from 0 to `layer_dropout` (LayerSkip, section 3.1)."""
        dice = np.random.default_rng((self.recipe.seed, step, 2)).random(depth)
        curve = 2.0 ** (np.arange(depth) / max(1, depth - 1)) - 1
        return set(np.flatnonzero(dice < self.recipe.layer_dropout * curve).tolist())


@torch.no_grad()
def exit_scores(model: Transformer, held_out: np.ndarray, depths: tuple[int, ...], windows: int = 8) -> dict[str, float]:
    """Held-out loss at each depth and, for each exit, its acceptance under speculative sampling at T = 1.

    Acceptance is the mean over positions of sum_v min(p_final, p_exit) (Leviathan et al. 2023, section 3.2).
    """
    starts = np.linspace(0, len(held_out) - WINDOW - 2, windows).astype(int)
    ids = torch.from_numpy(np.stack([held_out[s : s + WINDOW + 1] for s in starts]).astype(np.int64))
    sums: dict[str, float] = {}
    for one in ids:
        rows = _depth_rows(model, one[None, :-1], depths)
        logits = {d: F.linear(model.norm(r), model.head_weight).log_softmax(-1) for d, r in rows.items()}
        last = logits[max(depths)]
        for depth, found in logits.items():
            loss = F.nll_loss(found, one[1:]).item()
            sums[f"loss_{depth}"] = sums.get(f"loss_{depth}", 0.0) + loss / windows
            accept = torch.minimum(found, last).exp().sum(-1).mean().item()
            sums[f"accept_{depth}"] = sums.get(f"accept_{depth}", 0.0) + accept / windows
    return sums


def _depth_rows(model: Transformer, ids: Tensor, depths: tuple[int, ...]) -> dict[int, Tensor]:
    x, found = model.embed(ids), {}
    for number, layer in enumerate(model.layers, start=1):
        x = layer(x, model.rope)
        if number in depths:
            found[number] = x[0]
    return found


def train_target(data: Path, folder: Path, recipe: Recipe, branch: Path | None = None) -> Transformer:
    """Train, or continue, the target in `folder` on the corpus in `data`; `branch` starts from another run's checkpoint."""
    model = Transformer(REFERENCE)
    initialise(model, recipe.seed)
    run = Run(model, recipe.schedule, folder)
    run.resume(None if run.checkpoint.exists() else branch)
    loss = TargetLoss(model, recipe, Batches(np.load(data / "train.npy"), recipe.seed))
    held = np.load(data / "held_out.npy")
    run.train(loss, lambda: exit_scores(model, held, (*recipe.exits, model.config.layers)))
    return model

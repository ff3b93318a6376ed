"""Drafts distilled on the target: sliced from its lowest layers, then trained towards its distribution.

One pass of the teacher serves every draft: its final rows are kept by step, and batches are functions of (seed, step).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.family import Design
from flashspec.models.transformer import Transformer
from flashspec.train.target import WINDOW, initialise
from flashspec.train.texts import Texts, Writing, overlap, save, write
from flashspec.train.trainer import CHUNK, Run, Schedule, computing, fused, slope

OWN_LENGTH, PROMPT = 256, 48  # tokens of a text that the target writes, and of the given text in front of it


@dataclass(frozen=True)
class Distillation:
    """How a draft is trained; `variation` weighs total variation beside the KL divergence.

    `hidden` is the width of a narrower draft, with `ffn` and `heads` of its own; 0 keeps the target's. `dtype` is what its
    matrix products are computed in: bfloat16 is several times as fast where the processor multiplies it. With `own` texts
    written by the target, every other step learns on these: what a draft is asked to continue, not what people wrote.
    """

    layers: int
    schedule: Schedule
    sequences: int = 4
    length: int = WINDOW
    variation: float = 1.0
    seed: int = 1
    hidden: int = 0
    ffn: int = 0
    heads: int = 0
    dtype: str = "float32"
    own: int = 0


Taught = Distillation | Design


def slice_of(target: Transformer, layers: int) -> Transformer:
    """A new float32 model with the target's embedding, final norm and first `layers` layers."""
    draft = Transformer(replace(target.config, layers=layers))
    mine = target.state_dict()
    draft.load_state_dict({name: mine[name].float().clone() for name in draft.state_dict()})
    return draft


def narrow(target: Transformer, recipe: Distillation) -> Transformer:
    """A new float32 model of `recipe.hidden` columns: the embedding's principal directions, layers seeded."""
    c = target.config
    heads = recipe.heads or c.heads
    shape = replace(c, layers=recipe.layers, hidden=recipe.hidden, ffn=recipe.ffn or c.ffn, heads=heads, tied=True)
    draft = Transformer(replace(shape, kv_heads=min(heads, c.kv_heads)))
    initialise(draft, recipe.seed)
    weight = target.head_weight.detach().float()
    _, axes = torch.linalg.eigh(weight.T @ weight)
    with torch.no_grad():
        draft.embed.weight.copy_(weight @ axes[:, -recipe.hidden :])
        draft.norm.weight.fill_(float(target.norm.weight.square().mean().sqrt()))
    return draft


class DraftLoss:
    """Gradients of one step towards the target's distributions, one chunk of them alive at a time.

    The target's final rows (before the norm) for each step's batch are computed once and kept in a folder.
    """

    def __init__(self, draft: Transformer, target: Transformer, texts: Texts, folder: Path, recipe: Taught) -> None:
        self.draft, self.target, self.texts, self.folder, self.recipe = draft, target, texts, folder, recipe
        self.slope = fused() if recipe.dtype == "bfloat16" else slope
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def rows(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids [sequences, length] of a step and the target's rows [sequences * length, hidden]."""
        ids = self.texts.draw(step, self.recipe.sequences, self.recipe.length)[:, :-1]
        path = self.folder / f"{self.recipe.seed}-{step}.npy"
        if path.exists():
            return ids, torch.from_numpy(np.load(path)).float()
        rows = self.target.rows(ids).flatten(0, 1).half()
        save(path, rows.numpy())
        return ids, rows.float()

    def __call__(self, step: int) -> float:
        with computing(self.recipe.dtype):
            ids, theirs = self.rows(step)
            mine = self.draft.rows(ids).flatten(0, 1)
            leaf = mine.detach().requires_grad_()
            chunks = zip(leaf.split(CHUNK), theirs.split(CHUNK), strict=True)
            loss = sum(self._chunk(own, wanted, 1 / len(leaf)) for own, wanted in chunks)
            mine.backward(leaf.grad)
        return loss

    def _chunk(self, own: Tensor, wanted: Tensor, share: float) -> float:
        logits = F.linear(self.draft.norm(own), self.draft.head_weight)
        with torch.no_grad():
            theirs = F.linear(self.target.norm(wanted), self.target.head_weight)
            value, gradient = self.slope(theirs, logits.detach(), self.recipe.variation)
        logits.backward(gradient * share)
        return value.item() * share


def acceptance(
    target: Transformer, draft: Transformer, held_out: np.ndarray, windows: int = 8, length: int = WINDOW
) -> dict[str, float]:
    """Held-out loss of the draft and its acceptance at T = 1, as `overlap` finds them."""

    def log_chances(ids: Tensor) -> dict[str, Tensor]:
        return {name: model(ids)[0].log_softmax(-1) for name, model in (("", draft), (" of the target", target))}

    found = overlap(held_out, windows, length, log_chances)
    return {name: found[name] for name in ("loss", "accept")}


def distill(target: Transformer, data: Path, folder: Path, recipe: Distillation, start: Transformer | None = None) -> Transformer:
    """Train, or continue, a draft of a float32 target in `folder` on the corpus in `data`, from `start`."""
    draft = start or (narrow(target, recipe) if recipe.hidden else slice_of(target, recipe.layers))
    run = Run(draft, recipe.schedule, folder)
    run.resume()
    stream, held = (np.load(data / name) for name in ("train.npy", "held_out.npy"))
    own = _own_texts(target, stream, folder.parent / "own", recipe) if recipe.own else None
    learn = DraftLoss(draft, target, Texts(recipe.seed, stream, own), folder.parent / f"teacher-{recipe.own}", recipe)
    run.train(learn, lambda: acceptance(target, draft, held))
    return draft


def _own_texts(target: Transformer, stream: np.ndarray, folder: Path, recipe: Distillation) -> np.ndarray:
    """Texts by the target, in the precision that the draft is trained in."""
    writer = copy.deepcopy(target).bfloat16() if recipe.dtype == "bfloat16" else target
    return write(writer, stream, folder, Writing(recipe.own, OWN_LENGTH + 1, PROMPT, recipe.seed))

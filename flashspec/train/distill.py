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

from flashspec.models.transformer import Transformer
from flashspec.theory.checks import at_least
from flashspec.train.losses import CHUNK, Taught
from flashspec.train.outputs import InTurn, OwnText, save, write
from flashspec.train.target import WINDOW, initialise
from flashspec.train.trainer import Batches, Run, Schedule

OWN_LENGTH, PROMPT = 256, 48  # tokens of a text that the target writes, and of the given text in front of it


@dataclass(frozen=True)
class Distillation:
    """How a draft is trained: its depth, the schedule, and the weight of total variation beside the KL divergence.

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

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a draft needs at least 1 layer, got {self.layers}")
        at_least(self, sequences=1, length=1, variation=0, hidden=0, ffn=0, heads=0, own=0, seed=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")

    def computing(self) -> torch.autocast:
        """The context in which matrix products are computed in `dtype`."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16")


def slice_of(target: Transformer, layers: int) -> Transformer:
    """A new float32 model with the target's embedding, final norm and first `layers` layers."""
    if layers > target.config.layers:
        raise ValueError(f"the draft cannot be deeper than its target ({layers} > {target.config.layers} layers)")
    draft = Transformer(replace(target.config, layers=layers))
    mine = {k: v.float() for k, v in target.state_dict().items()}
    draft.load_state_dict({name: mine[name].clone() for name in draft.state_dict()})
    return draft


def narrow(target: Transformer, recipe: Distillation) -> Transformer:
    """A new float32 model of `recipe.hidden` columns: the target's embedding on its principal directions, layers seeded.

    Raises ValueError for a width above the target's.
    """
    c = target.config
    if not 0 < recipe.hidden <= c.hidden:
        raise ValueError(f"a narrower draft has between 1 and {c.hidden} columns, got {recipe.hidden}")
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


class Teacher:
    """The target's final rows (before the norm) for each step's batch, computed once and kept in a folder."""

    def __init__(self, target: Transformer, batches: Batches | OwnText | InTurn, folder: Path) -> None:
        self.target, self.batches, self.folder = target, batches, folder
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def rows(self, step: int, recipe: Distillation) -> tuple[Tensor, Tensor]:
        """Ids [sequences, length] of a step and the target's rows [sequences * length, hidden]."""
        ids = self.batches.draw(step, recipe.sequences, recipe.length)[:, :-1]
        path = self.folder / f"{recipe.seed}-{step}.npy"
        if path.exists():
            return ids, torch.from_numpy(np.load(path)).float()
        rows = self.target.rows(ids).flatten(0, 1).half()
        save(path, rows.numpy())
        return ids, rows.float()

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        """The target's logits [n, vocab] for rows [n, hidden]."""
        return F.linear(self.target.norm(rows), self.target.head_weight)


class DraftLoss:
    """Loss of one step, computed and differentiated in chunks so that only one chunk's distributions are alive."""

    def __init__(self, draft: Transformer, teacher: Teacher, recipe: Distillation) -> None:
        self.draft, self.teacher, self.recipe = draft, teacher, recipe

    def __call__(self, step: int) -> Tensor:
        with self.recipe.computing():
            return self._value(step)

    def _value(self, step: int) -> Tensor:
        ids, theirs = self.teacher.rows(step, self.recipe)
        fused = self.recipe.dtype == "bfloat16"
        mine = self.draft.rows(ids).flatten(0, 1)
        leaf = mine.detach().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        total = 0.0
        for own, wanted in zip(leaf.split(CHUNK), theirs.split(CHUNK), strict=True):
            logits = F.linear(self.draft.norm(own), self.draft.head_weight)
            part = Taught.apply(self.teacher.logits(wanted), logits, self.recipe.variation, fused) / len(leaf)
            part.backward()
            total += part.item()
        return (mine * leaf.grad).sum() + total - float((mine.detach() * leaf.grad).sum())


@torch.no_grad()
def acceptance(
    target: Transformer, draft: Transformer, held_out: np.ndarray, windows: int = 8, length: int = WINDOW
) -> dict[str, float]:
    """Held-out loss of the draft and its acceptance at T = 1, mean over positions of sum_v min(p, q) (Leviathan et al. 2023)."""
    starts = np.linspace(0, len(held_out) - length - 2, windows).astype(int)
    accept = loss = 0.0
    for start in starts:
        ids = torch.from_numpy(held_out[start : start + length + 1].astype(np.int64))
        p, log_q = target(ids[None, :-1])[0].softmax(-1), draft(ids[None, :-1])[0].log_softmax(-1)
        accept += torch.minimum(p, log_q.exp()).sum(-1).mean().item() / windows
        loss += F.nll_loss(log_q, ids[1:]).item() / windows
    return {"loss": loss, "accept": accept}


def distill(target: Transformer, data: Path, folder: Path, recipe: Distillation, start: Transformer | None = None) -> Transformer:
    """Train, or continue, one draft of a dense float32 target in `folder` on the corpus in `data`; `start` is where it begins."""
    stream = np.load(data / "train.npy")
    draft = start or (narrow(target, recipe) if recipe.hidden else slice_of(target, recipe.layers))
    run = Run(draft, recipe.schedule, folder)
    run.resume()
    held = np.load(data / "held_out.npy")
    teacher = Teacher(target, _batches(target, stream, folder, recipe), folder.parent / f"teacher-{recipe.own}")
    run.train(DraftLoss(draft, teacher, recipe), lambda: acceptance(target, draft, held))
    return draft


def _batches(target: Transformer, stream: np.ndarray, folder: Path, recipe: Distillation) -> Batches | InTurn:
    """What a step draws from: the corpus, or the corpus and the target's own texts in turn."""
    batches = Batches(stream, recipe.seed)
    if not recipe.own:
        return batches
    writer = copy.deepcopy(target).bfloat16() if recipe.dtype == "bfloat16" else target
    return InTurn(batches, write(writer, stream, folder.parent / "own", (recipe.own, OWN_LENGTH + 1, PROMPT), recipe.seed))

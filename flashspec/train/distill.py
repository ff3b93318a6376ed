"""Drafts distilled on the target: sliced from its lowest layers, then trained towards its distribution.

One pass of the teacher serves every draft: its final rows are kept by step.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.family import Design
from flashspec.models.transformer import Transformer
from flashspec.train.target import WINDOW, initialise
from flashspec.train.texts import Texts, overlap, save, write
from flashspec.train.trainer import CHUNK, Run, Schedule, computing, fused, slope

OWN_LENGTH = 256  # tokens of a text that the target writes for the reference drafts


def scheduled(design: Design) -> Schedule:
    """A design's steps and learning rates."""
    rates = {name: getattr(design, name) for name in ("warmup", "muon_lr", "adam_lr", "save_every")}
    return Schedule(design.steps, min(design.decay, design.steps), **rates)


def slice_of(target: Transformer, layers: int) -> Transformer:
    """A new float32 model with the target's embedding, final norm and first `layers` layers."""
    draft = Transformer(replace(target.config, layers=layers))
    mine = target.state_dict()
    draft.load_state_dict({name: mine[name].float().clone() for name in draft.state_dict()})
    return draft


def narrow(target: Transformer, design: Design, hidden: int) -> Transformer:
    """A new float32 model of `hidden` columns: the embedding's principal directions, layers seeded."""
    c = target.config
    heads, ffn = design.heads or c.heads, design.ffn or c.ffn
    shape = replace(c, layers=design.layers, hidden=hidden, ffn=ffn, heads=heads, tied=True)
    draft = Transformer(replace(shape, kv_heads=min(heads, c.kv_heads)))
    initialise(draft, design.seed)
    weight = target.head_weight.detach().float()
    _, axes = torch.linalg.eigh(weight.T @ weight)
    with torch.no_grad():
        draft.embed.weight.copy_(weight @ axes[:, -hidden:])
        draft.norm.weight.fill_(float(target.norm.weight.square().mean().sqrt()))
    return draft


class DraftLoss:
    """Gradients of one step towards the target's distributions, one chunk of them alive at a time.

    The target's final rows (before the norm) for each step's batch are computed once and kept in a folder.
    """

    def __init__(self, draft: Transformer, target: Transformer, texts: Texts, folder: Path, design: Design) -> None:
        self.draft, self.target, self.texts, self.folder, self.design = draft, target, texts, folder, design
        self.slope = fused() if design.dtype == "bfloat16" else slope
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def rows(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids [sequences, length] of a step and the target's rows [sequences * length, hidden]."""
        ids = self.texts.draw(step, self.design.sequences, self.design.length)[:, :-1]
        path = self.folder / f"{self.design.seed}-{step}.npy"
        if path.exists():
            return ids, torch.from_numpy(np.load(path)).float()
        rows = self.target.rows(ids).flatten(0, 1).half()
        save(path, rows.numpy())
        return ids, rows.float()

    def __call__(self, step: int) -> float:
        with computing(self.design.dtype):
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
            value, gradient = self.slope(theirs, logits.detach(), self.design.variation)
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


def distill(draft: Transformer, target: Transformer, work: Path, folder: Path, design: Design) -> None:
    """Train a draft of a float32 target, or continue in `folder`, on the corpus in work/data.

    Every other step learns on texts that the target wrote, where the design asks for them.
    """
    run = Run(draft, scheduled(design), folder)
    run.resume()
    stream, held = (np.load(work / "data" / name) for name in ("train.npy", "held_out.npy"))
    own = None
    if design.written:
        writer = copy.deepcopy(target).bfloat16() if design.dtype == "bfloat16" else target
        own = write(writer, stream, work / "own", replace(design, length=OWN_LENGTH))
    learn = DraftLoss(draft, target, Texts(design.seed, stream, own), work / f"teacher-{design.written}", design)
    run.train(learn, lambda: acceptance(target, draft, held))

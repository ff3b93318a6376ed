"""What every recipe shares: a seeded loop that resumes after kill -9, its optimisers, and the losses.

Losses over the vocabulary are computed in chunks whose distributions stay in cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.models.folder import first_line, read_as
from flashspec.models.transformer import Layer, Transformer
from flashspec.models.writing import refuse_taken, replaced, write_json, write_text
from flashspec.provenance import bf16_instructions

CHUNK = 512  # rows whose distributions are alive together


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of one run.

    `decay` steps at the end fall linearly to zero; before them the rate is constant after `warmup` steps (Hu et al. 2024,
    warmup-stable-decay). `handover` ends the run early, at its current rate, for another phase to continue.
    """

    steps: int
    decay: int
    warmup: int = 50
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    save_every: int = 50
    handover: int | None = None

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the full rate."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        falling = min(1.0, (self.steps - step) / max(1, self.decay))
        return min(rising, falling)


def optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) on the matrices inside layers, AdamW on the rest, or on all at a Muon rate of 0."""
    layers = [module for module in model.modules() if isinstance(module, Layer)] if schedule.muon_lr else []
    matrices = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    adam = torch.optim.AdamW(rest, schedule.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    if not matrices:
        return [adam]
    if not hasattr(torch.optim, "Muon"):
        raise ModuleNotFoundError(f"training needs torch 2.9 or newer, this is {torch.__version__}: pip install 'torch>=2.9'")
    muon = torch.optim.Muon(matrices, schedule.muon_lr, weight_decay=0.0, ns_steps=4)
    return [muon, adam]


class Run:
    """One training run in one folder: model, optimisers, step count and curve."""

    def __init__(self, model: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.optimizers = optimizers(model, schedule)
        self.step, self.checkpoint = 0, folder / "checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write the state; a kill leaves a complete old or new one."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        with replaced(self.checkpoint) as part, part.open("wb") as file:
            torch.save({"model": self.model.state_dict(), "optimizers": states, "step": self.step}, file)

    def _resume(self, source: Path | None) -> None:
        if source is None:
            return
        try:
            state = torch.load(source, weights_only=True, map_location=next(self.model.parameters()).device)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                if lacks := optimizer.state_dict()["param_groups"][0].keys() - saved["param_groups"][0].keys():
                    raise ValueError(f"its optimiser is an older one, without {min(lacks)}")
                optimizer.load_state_dict(saved)
            self.step = int(state["step"])
        except (EOFError, KeyError, RuntimeError, TypeError, UnpicklingError, ValueError) as error:
            raise ValueError(f"{source} is no checkpoint of this run ({first_line(error)}); remove it to start over") from error

    def train(self, learn: Callable[[int], float], evaluate: Callable[[], dict[str, float]], branch: Path | None = None) -> None:
        """Run to the schedule's end, or continue, saving and evaluating every `save_every` steps.

        `learn(step)` draws its own batch, adds the gradients of its loss to the parameters and returns the loss. A run without
        a checkpoint starts from that of the run `branch`.
        """
        self._resume(self.checkpoint if self.checkpoint.exists() else branch)
        last = self.schedule.handover or self.schedule.steps
        bar = tqdm(range(self.step, last), initial=self.step, total=last, desc=self.folder.name)
        for step in bar:
            bar.set_postfix(loss=f"{self._advance(learn, step):.3f}")
            if self.step % self.schedule.save_every == 0 or self.step == last:
                self._record(evaluate())

    def _advance(self, learn: Callable[[int], float], step: int) -> float:
        loss = learn(step)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * self.schedule.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step = step + 1
        return loss

    def _record(self, scores: dict[str, float]) -> None:
        line = {"step": self.step, "time": round(time.time(), 1), **{k: round(v, 4) for k, v in scores.items()}}
        path = self.folder / "curve.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        earlier = [text for text in lines if json.loads(text)["step"] < self.step]  # a killed run may have written more
        write_text("".join(f"{text}\n" for text in (*earlier, json.dumps(line))), path)
        self.save()


def claim(card: Path, facts: dict[str, Any]) -> None:
    """Record in a folder, on this card, what is made there, as JSON; ValueError where the card names something else."""
    if card.is_file() and read_as(card, dict) != facts:
        raise ValueError(f"{card.parent} holds the work on another model, design or recipe; give another --work, or remove it")
    refuse_taken(card.parent, card.name)
    card.parent.mkdir(parents=True, exist_ok=True)
    write_json(facts, card)


def quick_dtype() -> str:
    """The number format that frozen models compute in fastest here: bfloat16 where the processor multiplies it."""
    return "bfloat16" if bf16_instructions() else "float32"


def computing(dtype: str) -> torch.autocast:
    """The context in which matrix products are computed in `dtype`, float32 or bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def cross_entropy(model: Transformer, rows: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of rows [n, hidden] before the final norm."""
    parts = [
        F.cross_entropy(F.linear(model.norm(r), model.head_weight).float(), wanted, reduction="sum")
        for r, wanted in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum() / len(labels)


def chunked(rows: Tensor, loss_of: Callable[[Tensor, slice], Tensor]) -> float:
    """The sum of a loss over chunks of rows [n, hidden], with its gradients; one chunk's graph is in memory at a time."""
    leaf, total = rows.detach().requires_grad_(), 0.0
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        loss = loss_of(leaf[part], part)
        loss.backward()
        total += loss.item()
    rows.backward(leaf.grad)
    return total


def divergence(p: Tensor, logits: Tensor, variation: float) -> Tensor:
    """Summed KL(p || q) up to a constant, plus `variation` times the total variation; p and logits [n, V]."""
    log_q = logits.log_softmax(-1)
    cross = -(p * log_q).sum()
    return cross + variation * (p - log_q.exp()).abs().sum() / 2


@torch.no_grad()
def chances(model: Transformer, rows: Tensor) -> Tensor:
    """The model's distributions [n, V] for rows [n, hidden] before the final norm."""
    return F.linear(model.norm(rows), model.head_weight).softmax(-1)


def disagreement(model: Transformer, early: Tensor, final: Tensor) -> Tensor:
    """Mean divergence of an exit's rows [n, hidden] from the model's final rows, which get no gradient."""
    return divergence(chances(model, final), F.linear(model.norm(early), model.head_weight), 1.0) / len(early)

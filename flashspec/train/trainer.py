"""The training loop every recipe shares: seeded, resumable after kill -9, with a constant phase and decay branches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flashspec.models.folder import first_line
from flashspec.models.transformer import MLP, Transformer
from flashspec.models.writing import replaced, write_text
from flashspec.theory.checks import at_least
from flashspec.train.muon import Muon


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of one run.

    `decay` steps at the end fall linearly to zero; before them the rate is constant after `warmup` steps, so a decay
    branch can be taken from any checkpoint of a longer run (Hu et al. 2024, warmup-stable-decay). `handover` ends the run
    early, with the rate it then has, for another phase to take up.
    """

    steps: int
    decay: int
    warmup: int = 50
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    save_every: int = 50
    handover: int | None = None

    def __post_init__(self) -> None:
        if self.handover is not None and not 0 < self.handover <= self.steps:
            raise ValueError(f"handover must lie between 1 and steps = {self.steps}, got {self.handover}")
        if not 0 <= self.decay <= self.steps:
            raise ValueError(f"decay must lie between 0 and steps = {self.steps}, got {self.decay}")
        at_least(self, steps=0, warmup=0, save_every=1, muon_lr=0, adam_lr=0)

    @property
    def last(self) -> int:
        """Steps this run makes."""
        return self.steps if self.handover is None else self.handover

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the full rate."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        falling = min(1.0, (self.steps - step) / max(1, self.decay))
        return min(rising, falling)


class Batches(NamedTuple):
    """A stream of ids cut into windows; step `s` is a fixed function of (seed, s), so a resumed run sees the same text."""

    stream: np.ndarray
    seed: int

    def draw(self, step: int, count: int, length: int) -> Tensor:
        """Ids [count, length + 1] of random windows."""
        dice = np.random.default_rng((self.seed, step))
        starts = dice.integers(0, len(self.stream) - length - 1, size=count)
        return torch.from_numpy(np.stack([self.stream[s : s + length + 1] for s in starts]).astype(np.int64))


def optimizers(model: Transformer, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside layers, AdamW on embeddings, head and norms."""
    for layer in model.blocks:
        vars(layer.attention.qkv.weight)["row_groups"] = model.config.qkv_rows
        if isinstance(layer.mlp, MLP):
            vars(layer.mlp.gate_up.weight)["row_groups"] = (model.config.ffn, model.config.ffn)
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=schedule.muon_lr),
        torch.optim.AdamW(rest, lr=schedule.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Run:
    """One training run in one folder: model, optimisers, step count and curve."""

    def __init__(self, model: Transformer, schedule: Schedule, folder: Path) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.optimizers = optimizers(model, schedule)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the state; a kill leaves the old or the new one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }
        with replaced(self.checkpoint) as part, part.open("wb") as file:
            torch.save(state, file)

    def resume(self, path: Path | None = None) -> None:
        """Continue from this run's checkpoint, or branch off from another run's."""
        source = path or self.checkpoint
        if not source.exists():
            return
        try:
            state = torch.load(source, weights_only=True, map_location=self.model.embed.weight.device)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = int(state["step"])
        except (EOFError, KeyError, RuntimeError, TypeError, UnpicklingError, ValueError) as error:
            raise ValueError(f"{source} is no checkpoint of this run ({first_line(error)}); remove it to start over") from error

    def train(self, loss_of: Callable[[int], Tensor], evaluate: Callable[[], dict[str, float]]) -> None:
        """Run to the schedule's end, saving and evaluating every `save_every` steps; `loss_of(step)` draws its own batch."""
        bar = tqdm(range(self.step, self.schedule.last), initial=self.step, total=self.schedule.last, desc=self.folder.name)
        for step in bar:
            bar.set_postfix(loss=f"{self._advance(loss_of, step):.3f}")
            if self.step % self.schedule.save_every == 0 or self.step == self.schedule.last:
                self._record(evaluate())

    def _advance(self, loss_of: Callable[[int], Tensor], step: int) -> float:
        share = self.schedule.rate(step)
        self.optimizers[0].param_groups[0]["lr"] = self.schedule.muon_lr * share
        self.optimizers[1].param_groups[0]["lr"] = self.schedule.adam_lr * share
        loss = loss_of(step)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step = step + 1
        return loss.item()

    def _record(self, scores: dict[str, float]) -> None:
        line = {"step": self.step, "time": round(time.time(), 1), **{k: round(v, 4) for k, v in scores.items()}}
        path = self.folder / "curve.jsonl"
        write_text("".join(f"{text}\n" for text in (*earlier(path, self.step), json.dumps(line))), path)
        self.save()


def earlier(curve: Path, step: int) -> Iterator[str]:
    """The lines of a curve before this step; a run killed between curve and checkpoint has written the later ones already."""
    for text in curve.read_text().splitlines() if curve.exists() else ():
        if json.loads(text)["step"] < step:
            yield text

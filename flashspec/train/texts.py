"""What a step learns on: windows of a stream of ids, and texts that a target wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.models.engine import slots_of
from flashspec.models.family import Design
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import Transformer
from flashspec.models.writing import write_tensors

TOGETHER = 96
TEMPERATURES = (0.0, 1.0, 1.0, 0.7)  # of the texts, in turn
Scored = Callable[[Tensor], Mapping[str, Tensor]]  # logits [n, vocab] by name, for ids [1, n]


def cut(stream: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    """Ids [count, length] of a stream, from each of these starts."""
    return torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype(np.int64))


def windows(stream: np.ndarray, count: int, length: int) -> Tensor:
    """Ids [count, length], evenly spaced over a stream."""
    return cut(stream, np.linspace(0, len(stream) - length, count).astype(int), length)


class Texts(NamedTuple):
    """Ids to learn on; a batch is a fixed function of (seed, step), so a resumed run sees the same.

    Batches are random windows of the `stream`, or texts [n, length + 1] of the target's `own`; with both, these at odd steps.
    A draft is judged by the stream `held`, and the target's rows on each step's texts are kept in the folder `rows`.
    """

    seed: int
    stream: np.ndarray | None = None
    own: Tensor | None = None
    held: np.ndarray = np.empty(0)
    rows: Path = Path()

    def draw(self, step: int, count: int, length: int) -> Tensor:
        """Ids [count, length + 1]; more and shorter texts where the target's own are shorter."""
        dice = np.random.default_rng((self.seed, step))
        if self.stream is not None and (self.own is None or step % 2 == 0):
            return cut(self.stream, dice.integers(0, len(self.stream) - length - 1, size=count), length + 1)
        assert self.own is not None
        longest = self.own.shape[1] - 1
        count, length = max(count, count * length // longest), min(length, longest)
        chosen = torch.from_numpy(dice.integers(0, len(self.own), size=count))
        return self.own[chosen, : length + 1].long()


@torch.no_grad()
def overlap(held: np.ndarray, count: int, length: int, scored: Scored) -> dict[str, float]:
    """Held-out loss of named distributions, and the acceptance of each by the last one at T = 1.

    Means over `count` windows; acceptance is the mean of sum_v min(p, q) (Leviathan et al. 2023, section 3.2).
    """
    sums: dict[str, float] = {}
    for ids in windows(held[:-1], count, length + 1):
        found = {name: logits.log_softmax(-1) for name, logits in scored(ids[None, :-1]).items()}
        *_, last = found.values()
        for name, logs in found.items():
            accepted = torch.minimum(logs, last).exp().sum(-1).mean()
            for what, value in (("loss", F.nll_loss(logs, ids[1:])), ("accept", accepted)):
                sums[what + name] = sums.get(what + name, 0.0) + value.item() / count
    return sums


@torch.inference_mode()
def continued(model: Transformer, prompts: Tensor, length: int, dice: torch.Generator) -> Tensor:
    """Prompts [batch, p] continued by the model to ids [batch, length], at TEMPERATURES in turn."""
    caches = slots_of(model, model.config.layers, length, model.embed.weight.dtype, len(prompts))
    ids, fresh = prompts, prompts
    warmth = torch.tensor(TEMPERATURES).repeat(-(-len(prompts) // len(TEMPERATURES)))[: len(prompts), None]
    while ids.shape[1] < length:
        *_, rows = model.states(fresh, ids.shape[1] - fresh.shape[1], caches)
        logits = F.linear(model.norm(rows[:, -1]), model.head_weight).float()
        noise = torch.empty_like(logits).exponential_(generator=dice).log_()
        fresh = (logits - warmth * noise).argmax(-1, keepdim=True)
        ids = torch.cat((ids, fresh), dim=1)
    return ids


def written(target: Transformer, stream: np.ndarray, folder: Path, design: Design) -> Tensor:
    """A design's texts [written, length + 1] by the target, after windows of the stream; kept on disk."""
    pieces = []
    for first in tqdm(range(0, design.written, TOGETHER), desc="texts by the target", delay=1):
        batch, most = min(TOGETHER, design.written - first), len(stream) - design.prompt + 1
        starts = np.random.default_rng((design.seed, first)).integers(0, most, size=batch)
        dice = torch.Generator().manual_seed(design.seed * 1_000_003 + first)
        make = partial(continued, target, cut(stream, starts, design.prompt), design.length + 1, dice)
        pieces.append(kept(folder / f"{first}.safetensors", make))
    return torch.cat(pieces)


def kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor of a file, made where there is none; ValueError for a damaged one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors({"kept": make()}, path)
    return read(path)["kept"]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that training made; ValueError for a damaged one."""
    return read_tensors(path, "remove it, and what comes of it is computed anew")[0]

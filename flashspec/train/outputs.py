"""A target's own texts, written in batches and kept on disk: what a draft will be asked to imitate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.model.transformer import Transformer

TOGETHER = 16


class Grown:
    """Keys and values of a batch, appended as they come; the naive cache."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Everything up to and with these rows [batch, kv_heads, n, head_dim]."""
        self.keys = keys if self.keys is None else torch.cat((self.keys, keys), dim=2)
        self.values = values if self.values is None else torch.cat((self.values, values), dim=2)
        return self.keys, self.values, None


@torch.no_grad()
def continued(model: Transformer, prompts: Tensor, length: int, dice: torch.Generator) -> Tensor:
    """Ids [batch, length]: prompts [batch, p] continued with draws at temperature 1."""
    caches = [Grown() for _ in model.blocks]
    ids, fresh = prompts, prompts
    while ids.shape[1] < length:
        start = ids.shape[1] - fresh.shape[1]
        x = model.place(model.embed(fresh), start)
        for layer, cache in zip(model.blocks, caches, strict=True):
            x = layer(x, model.rope, start, cache)
        logits = F.linear(model.norm(x[:, -1]), model.head_weight).float()
        fresh = torch.multinomial(logits.softmax(-1), 1, generator=dice)
        ids = torch.cat((ids, fresh), dim=1)
    return ids


class OwnText(NamedTuple):
    """Texts [n, length + 1] that a target wrote; a step's batch is a fixed function of (seed, step)."""

    texts: np.ndarray
    seed: int

    def draw(self, step: int, count: int, length: int) -> Tensor:
        """Ids [count, length + 1] of random texts, cut to that length."""
        chosen = np.random.default_rng((self.seed, step)).integers(0, len(self.texts), size=count)
        return torch.from_numpy(self.texts[chosen, : length + 1].astype(np.int64))


def write(target: Transformer, stream: np.ndarray, folder: Path, size: tuple[int, int, int], seed: int) -> OwnText:
    """`size` = (texts, tokens a text, prompt tokens) written behind random windows of the stream; pieces on disk are kept."""
    count, length, prompt = size
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for first in tqdm(range(0, count, TOGETHER), desc="texts by the target", delay=1):
        path = folder / f"{first}.npy"
        if not path.exists():
            batch = min(TOGETHER, count - first)
            starts = np.random.default_rng((seed, first)).integers(0, len(stream) - prompt + 1, size=batch)
            prompts = torch.from_numpy(np.stack([stream[s : s + prompt] for s in starts]).astype(np.int64))
            dice = torch.Generator().manual_seed(seed * 1_000_003 + first)
            save(path, continued(target, prompts, length, dice).numpy().astype(np.int32))
        pieces.append(np.load(path))
    return OwnText(np.concatenate(pieces), seed)


def save(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name, flush, then rename: a kill leaves nothing half-written."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)

"""A target's own texts, written in batches and kept on disk: what a draft will be asked to imitate."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.models.transformer import Transformer
from flashspec.models.writing import replaced
from flashspec.train.trainer import Batches

TOGETHER = 96
TEMPERATURES = (0.0, 1.0, 1.0, 0.7)  # of the texts, in turn


class Grown:
    """Keys and values of a batch [batch, kv_heads, length, head_dim], written as they come."""

    def __init__(self, model: Transformer, batch: int, length: int) -> None:
        shape = (2, batch, model.config.kv_heads, length, model.config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=model.embed.weight.dtype)

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Everything up to and with these rows [batch, kv_heads, n, head_dim]."""
        stop = start + keys.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = keys, values
        return self.keys[:, :, :stop], self.values[:, :, :stop], None


@torch.inference_mode()
def continued(model: Transformer, prompts: Tensor, length: int, dice: torch.Generator) -> Tensor:
    """Ids [batch, length]: prompts [batch, p] continued by the model, greedy and sampled in turn (TEMPERATURES)."""
    caches = [Grown(model, len(prompts), length) for _ in model.blocks]
    ids, fresh = prompts, prompts
    warmth = torch.tensor(TEMPERATURES).repeat(-(-len(prompts) // len(TEMPERATURES)))[: len(prompts), None]
    while ids.shape[1] < length:
        start = ids.shape[1] - fresh.shape[1]
        x = model.place(model.embed(fresh), start)
        for layer, cache in zip(model.blocks, caches, strict=True):
            x = layer(x, model.rope, start, cache)
        logits = F.linear(model.norm(x[:, -1]), model.head_weight).float()
        noise = torch.empty_like(logits).exponential_(generator=dice).log_()
        fresh = (logits - warmth * noise).argmax(-1, keepdim=True)
        ids = torch.cat((ids, fresh), dim=1)
    return ids


class OwnText(NamedTuple):
    """Texts [n, length + 1] that a target wrote; a step's batch is a fixed function of (seed, step)."""

    texts: np.ndarray
    seed: int

    def draw(self, step: int, count: int, length: int) -> Tensor:
        """Ids [count, length + 1] of random texts, cut to that length; more and shorter ones where the texts are shorter."""
        longest = self.texts.shape[1] - 1
        count, length = max(count, count * length // longest), min(length, longest)
        chosen = np.random.default_rng((self.seed, step)).integers(0, len(self.texts), size=count)
        return torch.from_numpy(self.texts[chosen, : length + 1].astype(np.int64))


class InTurn(NamedTuple):
    """The corpus at even steps, the target's own texts at odd ones."""

    corpus: Batches
    own: OwnText

    def draw(self, step: int, count: int, length: int) -> Tensor:
        """Ids [n, m + 1] of one of the two, `count` * `length` tokens in all."""
        return (self.own if step % 2 else self.corpus).draw(step, count, length)


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
    """Write an array; a kill leaves nothing half-written."""
    with replaced(path) as part, part.open("wb") as file:
        np.save(file, array)

"""Conversations that a chat model writes, the user's words too (Magpie, Xu et al. 2024): texts to learn on without data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flashspec.decoding.models import SHIPPED
from flashspec.models.chat import chat_prompt
from flashspec.models.exits import check_layers
from flashspec.models.transformer import Transformer
from flashspec.train.texts import TOGETHER, Grown, save, step

OPENERS = SHIPPED / "openers.json"
MARK = "@@@"
HEATS = (1.0, 1.0, 0.7, 0.7)  # temperatures of the texts, in turn; every fourth answers greedily
COLD = 1e-3
SHORTEST, LONGEST = 3, 60  # tokens of a user's words behind the opener


@dataclass(frozen=True)
class LayerRecipe:
    """How exits with layers are trained: where, on how many texts of which length, and how long."""

    layers: tuple[int, ...]
    texts: int = 1728
    length: int = 320
    steps: int = 1500
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not check_layers(self.layers):
            raise ValueError("name at least one layer to end in an exit")


class Turns(NamedTuple):
    """A chat template in ids: all that stands before a user's words and the first of these, and what lets the model answer."""

    openings: list[list[int]]
    answer: list[int]


def turns_of(source: Path, tokenizer: Any) -> Turns:
    """The turns of a checkpoint's chat template; ValueError where it has none."""
    before, _, behind = chat_prompt(source, MARK).partition(MARK)
    starts = [before + opener for kind in json.loads(OPENERS.read_bytes()).values() for opener in kind]
    *openings, answer = (tokenizer.encode(text, add_special_tokens=False).ids for text in (*starts, behind))
    return Turns(openings, answer)


class Script:
    """Who speaks in each of a batch of conversations: a user, who ends in time, then the template, then the model."""

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.at = torch.tensor(answer), torch.full((TOGETHER,), -1)

    def follow(self, drawn: Tensor, written: int) -> Tensor:
        """The next tokens [batch]: those drawn, or the template's, once the user's words have ended."""
        ends = (self.at < 0) & ((drawn == self.answer[0]) | (written >= LONGEST))
        self.at[ends] = 0
        told = (self.at >= 0) & (self.at < len(self.answer))
        tokens = torch.where(told, self.answer[self.at.clamp(0, len(self.answer) - 1)], drawn)
        self.at += told
        return tokens

    @property
    def answering(self) -> Tensor:
        """Which of them the model itself goes on with."""
        return self.at == len(self.answer)


@torch.inference_mode()
def conversations(model: Transformer, turns: Turns, length: int, seed: int, number: int) -> Tensor:
    """Ids [TOGETHER, length] of conversations that begin with one opener."""
    dice = np.random.default_rng((seed, number))
    noise = torch.Generator().manual_seed(int(dice.integers(2**31)))
    fresh = ids = torch.tensor(turns.openings[dice.integers(len(turns.openings))]).repeat(TOGETHER, 1)
    caches, script, begun = [Grown(model, TOGETHER, length) for _ in model.blocks], Script(turns.answer), ids.shape[1]
    place = torch.arange(TOGETHER) % len(HEATS)
    heat, greedy = torch.tensor(HEATS)[place], place == len(HEATS) - 1
    while ids.shape[1] < length:
        logits, written = step(model, caches, fresh, ids.shape[1]), ids.shape[1] - begun
        if written < SHORTEST:
            logits[:, turns.answer[0]] = -torch.inf
        heats = torch.where(script.answering & greedy, COLD, heat)[:, None]
        sums = (logits / heats).softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(sums, torch.rand(TOGETHER, 1, generator=noise) * sums[:, -1:])[:, 0]
        fresh = script.follow(drawn.clamp(max=logits.shape[1] - 1), written)[:, None]
        ids = torch.cat((ids, fresh), dim=1)
    return ids


def written(model: Transformer, turns: Turns, folder: Path, recipe: LayerRecipe) -> list[Path]:
    """Files of ids [TOGETHER, length], the recipe's texts in all; those on disk are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first}.npy" for first in range(0, recipe.texts, TOGETHER)]
    for number, path in enumerate(tqdm(paths, desc="conversations", delay=1)):
        if not path.exists():
            save(path, conversations(model, turns, recipe.length, recipe.seed, number).numpy().astype(np.int32))
    return paths

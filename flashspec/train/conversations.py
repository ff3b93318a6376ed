"""Lessons: conversations that a chat model writes, the user's turns too (Magpie, Xu et al. 2024), and its token probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.decoding.models import SHIPPED, Models
from flashspec.measure.trace import target_digest
from flashspec.models.chat import chat_prompt
from flashspec.models.engine import slots_of
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import Transformer
from flashspec.models.writing import write_tensors
from flashspec.train.texts import ANEW, TOGETHER
from flashspec.train.trainer import claim

OPENERS = SHIPPED / "openers.json"
MARK = "@@@"
HEATS = (1.0, 1.0, 0.7, 0.7)  # temperatures of the texts, drawn from the TOP likeliest tokens; every fourth answers greedily
COLD = 1e-3
SHORTEST, LONGEST = 3, 60  # tokens of a user's words behind the opener
TOP = 64  # likeliest tokens whose probabilities are kept; what is left of 1 is the others' mass
TEXTS = 8  # of a file
HELD = 40  # of so many files, one is held out


@dataclass(frozen=True)
class LessonRecipe:
    """How layers are taught: how many texts, how long, for how many steps.

    A draft keeps so many `layers` of its base. Exits stand above the layers `exits`, whose rows the lessons keep; they are
    low-rank steps of the width `rank`, or layers where it is 0.
    """

    exits: tuple[int, ...] = ()
    layers: int = 4
    rank: int = 0
    texts: int = 1728
    length: int = 320
    steps: int = 1500
    rate: float = 1e-3
    seed: int = 0


class Lessons(NamedTuple):
    """Functions that return each lesson to learn from, and each one that is held out."""

    rest: Sequence[Callable[[], dict[str, Tensor]]]
    held: Sequence[Callable[[], dict[str, Tensor]]]


class Turns(NamedTuple):
    """A chat template in ids: everything before a user's words with the first of these, and what lets the model answer."""

    openings: list[list[int]]
    answer: list[int]


def turns_of(source: Path, tokenizer: Any) -> Turns:
    """The turns of a checkpoint's chat template; ValueError where it has none."""
    before, _, behind = chat_prompt(source, MARK).partition(MARK)
    starts = [before + opener for kind in json.loads(OPENERS.read_bytes()).values() for opener in kind]
    *openings, answer = (tokenizer.encode(text, add_special_tokens=False).ids for text in (*starts, behind))
    return Turns(openings, answer)


class Script:
    """Who speaks in each of a batch of conversations: first the user, then the template, then the model."""

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.at = torch.tensor(answer), torch.full((TOGETHER,), -1)

    def follow(self, drawn: Tensor, written: int) -> Tensor:
        """The next tokens [batch]: the drawn ones, or the template's, once the user's words have ended."""
        ends = (self.at < 0) & ((drawn == self.answer[0]) | (written >= LONGEST))
        self.at[ends] = 0
        told = (self.at >= 0) & (self.at < len(self.answer))
        tokens = torch.where(told, self.answer[self.at.clamp(0, len(self.answer) - 1)], drawn)
        self.at += told
        return tokens

    @property
    def answering(self) -> Tensor:
        """Which conversations the model itself continues."""
        return self.at == len(self.answer)


@torch.inference_mode()
def conversations(model: Transformer, turns: Turns, recipe: LessonRecipe, number: int) -> dict[str, Tensor]:
    """Lessons of TOGETHER conversations whose openers have the same length: `ids` [TOGETHER, length], `top` ids and `logs` of
    their probabilities [TOGETHER, length, TOP], and half-precision `rows` [TOGETHER, length, hidden] after the recipe's layers.
    """
    dice = np.random.default_rng((recipe.seed, number))
    noise = torch.Generator().manual_seed(int(dice.integers(2**31)))
    length = len(turns.openings[dice.integers(len(turns.openings))])
    openers = torch.tensor([opening for opening in turns.openings if len(opening) == length])
    chosen = torch.from_numpy(dice.integers(len(openers), size=TOGETHER))
    some, of = chosen.unique(return_inverse=True)
    first = torch.stack([(chosen == opener).nonzero()[0, 0] for opener in some])  # one conversation of each opener
    fresh = ids = openers[chosen]
    last, script, begun = model.config.layers, Script(turns.answer), ids.shape[1]
    caches = slots_of(model, last, recipe.length, model.embed.weight.dtype, TOGETHER)
    place = torch.arange(TOGETHER) % len(HEATS)
    heat, greedy = torch.tensor(HEATS)[place], place == len(HEATS) - 1
    learned = []
    while True:
        states, written = enumerate(model.states(fresh, ids.shape[1] - fresh.shape[1], caches), start=1), ids.shape[1] - begun
        rows = {depth: x for depth, x in states if depth in (*recipe.exits, last)}
        final = model.norm(rows[last])
        found = lesson(F.linear(final if written else final[first], model.head_weight).float())
        found = found if written else {name: value[of] for name, value in found.items()}
        learned.append(found | {f"rows.{depth}": rows[depth].half() for depth in recipe.exits})
        if ids.shape[1] >= recipe.length:
            return {"ids": ids.int()} | {name: torch.cat([each[name] for each in learned], dim=1) for name in learned[0]}
        top, logs = (learned[-1][name][:, -1] for name in ("top", "logs"))
        if written < SHORTEST:
            logs = logs.masked_fill(top == script.answer[0], -torch.inf)
        heats = torch.where(script.answering & greedy, COLD, heat)[:, None]
        drawn = top.gather(1, torch.multinomial((logs.float() / heats).softmax(-1), 1, generator=noise))[:, 0]
        fresh = script.follow(drawn.long(), written)[:, None]
        ids = torch.cat((ids, fresh), dim=1)


def lesson(logits: Tensor) -> dict[str, Tensor]:
    """The part of logits [batch, n, V] that a lesson keeps."""
    best, top = logits.topk(min(TOP, logits.shape[-1]), -1)
    return {"top": top.int(), "logs": (best - logits.logsumexp(-1, keepdim=True)).half()}


def written(model: Transformer, turns: Turns, folder: Path, recipe: LessonRecipe) -> list[Path]:
    """Files of lessons, TEXTS conversations each, the recipe's texts in all; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, first in enumerate(tqdm(range(0, recipe.texts, TOGETHER), desc="conversations", delay=1)):
        files = [folder / f"{first}-{part}.safetensors" for part in range(TOGETHER // TEXTS)]
        if not all(path.exists() for path in files):
            made = conversations(model, turns, recipe, number)
            for part, path in enumerate(files):
                write_tensors({name: value[part * TEXTS : (part + 1) * TEXTS].clone() for name, value in made.items()}, path)
        found += files
    return found


def read_lesson(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of lessons; ValueError for a damaged one."""
    return read_tensors(path, ANEW)[0]


def in_files(files: list[Path]) -> Lessons:
    """Lessons from files; one file in HELD is held out."""
    reads = [partial(read_lesson, path) for path in files]
    return Lessons([read for i, read in enumerate(reads) if i % HELD != HELD - 1], reads[HELD - 1 :: HELD] or reads[:1])


def taught(models: Models, source: Path, work: Path, recipe: LessonRecipe) -> Lessons:
    """Lessons by the target at `source`, in a folder of `work` for this target, these exits and this seed."""
    facts = {"model": target_digest(source), "exits": recipe.exits, "length": recipe.length, "seed": recipe.seed}
    claim(work / "recipe.json", facts)
    return in_files(written(models.target, turns_of(source, models.tokenizer), work / "lessons", recipe))

"""Lessons: conversations that a chat model writes, the user's turns too (Magpie, Xu et al. 2024), with its likeliest next tokens,
and how an exit or a draft learns from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.decoding.models import SHIPPED, Models
from flashspec.measure.trace import target_digest
from flashspec.models.chat import chat_prompt
from flashspec.models.engine import Slot, slots_of
from flashspec.models.transformer import Transformer
from flashspec.models.writing import write_tensors
from flashspec.train.texts import TOGETHER, read
from flashspec.train.trainer import CHUNK, Run, Schedule, chunked, claim, computing, quick_dtype

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

    A draft keeps so many `layers` of its base. Exits are above the layers `exits`, whose rows the lessons keep; they are
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
    """A lesson of TOGETHER conversations whose openers have the same length, with its `ids` [TOGETHER, length]."""
    dice = np.random.default_rng((recipe.seed, number))
    noise = torch.Generator().manual_seed(int(dice.integers(2**31)))
    begun = len(turns.openings[dice.integers(len(turns.openings))])
    openers = torch.tensor([opening for opening in turns.openings if len(opening) == begun])
    chosen = torch.from_numpy(dice.integers(len(openers), size=TOGETHER))
    some, of = chosen.unique(return_inverse=True)  # each opener is read once
    caches = slots_of(model, model.config.layers, recipe.length, model.embed.weight.dtype, len(some))
    learned = [{name: value[of] for name, value in heard(model, openers[some], recipe.exits, 0, caches).items()}]
    caches, script, ids = [Slot(each.keys[of], each.values[of]) for each in caches], Script(turns.answer), openers[chosen]
    place = torch.arange(TOGETHER) % len(HEATS)
    heat, greedy = torch.tensor(HEATS)[place], place == len(HEATS) - 1
    for written in range(recipe.length - begun):
        top, logs = (learned[-1][name][:, -1] for name in ("top", "logs"))
        if written < SHORTEST:
            logs = logs.masked_fill(top == script.answer[0], -torch.inf)
        heats = torch.where(script.answering & greedy, COLD, heat)[:, None]
        drawn = top.gather(1, torch.multinomial((logs.float() / heats).softmax(-1), 1, generator=noise))[:, 0]
        fresh = script.follow(drawn.long(), written)[:, None]
        learned.append(heard(model, fresh, recipe.exits, begun + written, caches))
        ids = torch.cat((ids, fresh), dim=1)
    return {"ids": ids.int()} | {name: torch.cat([each[name] for each in learned], dim=1) for name in learned[0]}


@torch.no_grad()
def heard(model: Transformer, ids: Tensor, exits: tuple[int, ...], at: int = 0, caches: Sequence[Slot] = ()) -> dict[str, Tensor]:
    """A lesson on ids [batch, n], at position `at` after what the caches hold.

    At each id the `top` TOP ids to follow and the `logs` of their probabilities [batch, n, TOP], and `rows` [batch, n, hidden]
    after each of the layers `exits`.
    """
    last = model.config.layers
    rows = {depth: x for depth, x in enumerate(model.states(ids, at, caches), start=1) if depth in (*exits, last)}
    logits = F.linear(model.norm(rows[last]), model.head_weight).float()
    best, top = logits.topk(min(TOP, logits.shape[-1]), -1)
    found = {"top": top.int(), "logs": (best - logits.logsumexp(-1, keepdim=True)).half()}
    return found | {f"rows.{depth}": rows[depth] for depth in exits}


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


def in_files(files: list[Path]) -> Lessons:
    """Lessons from files, ValueError for a damaged one; one file in HELD is held out, of fewer the last."""
    reads = [partial(read, path) for path in files]
    last = min(HELD, len(reads)) - 1
    return Lessons([read for i, read in enumerate(reads) if i % HELD != last], reads[last::HELD])


def taught(models: Models, source: Path, work: Path, recipe: LessonRecipe) -> Lessons:
    """Lessons by the target at `source`, in a folder of `work` for this target, these exits and this seed."""
    facts = {"model": target_digest(source), "exits": list(recipe.exits), "length": recipe.length, "seed": recipe.seed}
    claim(work / "recipe.json", facts)
    return in_files(written(models.target, turns_of(source, models.tokenizer), work / "lessons", recipe))


SAVED = 100  # steps between two checkpoints
BLIND = 8  # tokens at the start of a text that nothing is learned from
SHARPEST = 1.0  # norm that gradients are cut to
SOLID, OTHERS = 16, 2048  # of the likeliest tokens those scored for every row of a chunk, and how many others stand for the rest


class Pupil(NamedTuple):
    """What is trained, the vocabulary weight over it, and its normalised rows [batch, n, hidden] for a lesson."""

    module: nn.Module
    weight: Tensor
    said: Callable[[dict[str, Tensor]], Tensor]


def learned(pupil: Pupil, lessons: Lessons, folder: Path, recipe: LessonRecipe) -> tuple[float, float]:
    """Train a pupil in a folder, or continue; returns its acceptance at T = 1 and agreement on held-out lessons."""
    rest = lessons.rest

    def rows(lesson: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with computing(quick_dtype()):
            found = pupil.said(lesson)[:, BLIND:].flatten(0, 1)
        return found, {name: lesson[name][:, BLIND:].flatten(0, 1) for name in ("top", "logs")}

    def learn(step: int) -> float:
        epoch, number = divmod(step, len(rest))
        found, wanted = rows(rest[np.random.default_rng((recipe.seed, epoch)).permutation(len(rest))[number]]())
        dice = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        loss = sampled_divergence(pupil.weight, found.to(pupil.weight.dtype), wanted, dice)
        nn.utils.clip_grad_norm_(pupil.module.parameters(), SHARPEST)
        return loss

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        pairs = (rows(read()) for read in lessons.held)
        scores = [agreement(pupil.weight, found.to(pupil.weight.dtype), wanted) for found, wanted in pairs]
        return dict(zip(("accept", "agree"), np.mean(scores, axis=0).tolist(), strict=True))

    schedule = Schedule(recipe.steps, recipe.steps // 2, min(50, recipe.steps), 0.0, recipe.rate, save_every=SAVED)
    Run(pupil.module, schedule, folder).train(learn, evaluate)
    scores = evaluate()
    return scores["accept"], scores["agree"]


def sampled_divergence(weight: Tensor, rows: Tensor, lesson: dict[str, Tensor], dice: torch.Generator) -> float:
    """Mean KL divergence and total variation of rows' [n, hidden] distributions from the lesson's; adds to the rows' gradient.

    The sum over the vocabulary is that over the likeliest tokens of every row of a chunk and over OTHERS drawn from the rest,
    each weighted by its share: an unbiased estimate of the partition function (Bengio and Senécal 2008).
    """
    top, logs, share = lesson["top"], lesson["logs"], 1 / len(rows)
    return chunked(rows, lambda own, part: share * _chunk(weight, own, top[part].long(), logs[part].float(), dice))


def _chunk(weight: Tensor, rows: Tensor, top: Tensor, logs: Tensor, dice: torch.Generator) -> Tensor:
    at = torch.full((len(weight),), -1)
    solid = top[:, :SOLID].unique()
    at[solid] = torch.arange(len(solid))
    rest = (at < 0).nonzero()[:, 0]
    drawn = rest[torch.randint(max(1, len(rest)), (OTHERS if len(rest) else 0,), generator=dice)]
    logits = F.linear(rows, weight[torch.cat((solid, drawn))]).float()
    tall = torch.zeros(logits.shape[1])
    tall[len(solid) :] = np.log(max(1, len(rest)) / OTHERS)
    log_q = logits[:, : len(solid)] - (logits + tall).logsumexp(-1, keepdim=True)
    scored = at[top] >= 0
    log_q = log_q.gather(1, at[top].clamp(min=0))
    p, q = logs.exp() * scored, log_q.exp() * scored
    variation = (p - q).abs().sum() + (p.sum(-1) - q.sum(-1)).abs().sum()
    return variation / 2 - (p * log_q).sum()


@torch.no_grad()
def agreement(weight: Tensor, rows: Tensor, lesson: dict[str, Tensor]) -> tuple[float, float]:
    """Means over rows [n, hidden]: acceptance under speculative sampling at T = 1, and agreement of the best token.

    The likeliest TOP tokens count one by one, the others only as a sum, so the acceptance is an upper estimate.
    """
    accepted, same = 0.0, 0.0
    parts = zip(rows.split(CHUNK), lesson["top"].long().split(CHUNK), lesson["logs"].float().split(CHUNK), strict=True)
    for own, top, logs in parts:
        log_q = F.linear(own, weight).float().log_softmax(-1)
        p, q = logs.exp(), log_q.gather(1, top).exp()
        left = torch.minimum(1 - p.sum(-1), 1 - q.sum(-1)).clamp(min=0)
        accepted += (torch.minimum(p, q).sum(-1) + left).sum().item()
        same += (log_q.argmax(-1) == top[:, 0]).sum().item()
    return accepted / len(rows), same / len(rows)

"""How an exit or a draft learns from lessons, a model's likeliest next tokens: the loss and the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashspec.train.conversations import LessonRecipe, Lessons
from flashspec.train.trainer import CHUNK, Run, Schedule, chunked, computing

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
        with computing("bfloat16"):
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

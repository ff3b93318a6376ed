"""What an exit or a draft learns from: a model's rows at its exits and its likeliest next tokens, stored once by text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.models.folder import read_tensors
from flashspec.models.transformer import Transformer
from flashspec.models.writing import write_tensors

TOP = 64  # likeliest tokens whose probabilities are kept; what is left of 1 is the others' mass
TEXTS = 8  # of a file
SOLID, OTHERS = 16, 2048  # of the likeliest tokens those scored for every row of a chunk, and how many others stand for the rest
CHUNK = 512


def lessons(model: Transformer, texts: list[Path], folder: Path, exits: tuple[int, ...]) -> list[Path]:
    """Files of ids [TEXTS, n], `top` ids and `logs` of their probabilities [TEXTS, n, TOP], and half-precision rows of the exits
    [TEXTS, n, hidden]; those on disk are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in tqdm(texts, desc="lessons", delay=1):
        for number, ids in enumerate(torch.from_numpy(np.load(path).astype(np.int64)).split(TEXTS)):
            found.append(folder / f"{path.stem}-{number}.safetensors")
            if not found[-1].exists():
                write_tensors(lesson(model, ids, exits), found[-1])
    return found


@torch.inference_mode()
def lesson(model: Transformer, ids: Tensor, exits: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of one file."""
    found, last = {"ids": ids.int()}, ids[..., None]
    for depth, last in enumerate(model.states(ids), start=1):
        if depth in exits:
            found[f"rows.{depth}"] = last.half()
    logits = F.linear(model.norm(last), model.head_weight).float()
    best, top = logits.topk(min(TOP, logits.shape[-1]), -1)
    logs = best - logits.logsumexp(-1, keepdim=True)
    return {**found, "top": top.int(), "logs": logs.half()}


def read_lesson(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `lessons`; ValueError for a damaged one."""
    return read_tensors(path, "remove it, and what comes of it is computed anew")[0]


def sampled_divergence(weight: Tensor, rows: Tensor, lesson: dict[str, Tensor], dice: torch.Generator) -> float:
    """Mean KL divergence and total variation of rows' [n, hidden] distributions from the lesson's; adds to the rows' gradient.

    The sum over the vocabulary is that over the likeliest tokens of every row of a chunk and over OTHERS drawn from the rest,
    each for its share of them: an estimate without bias of the partition function (Bengio and Senécal 2008).
    """
    total, share = 0.0, 1 / len(rows)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        loss = share * _chunk(weight, rows[part], lesson["top"][part].long(), lesson["logs"][part].float(), dice)
        loss.backward()
        total += loss.item()
    return total


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

    Of the likeliest TOP tokens each counts, of the others only their mass, so the acceptance is an upper estimate.
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

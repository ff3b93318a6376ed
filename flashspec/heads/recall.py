"""How often a clustered head finds what the dense head would have said, on given hidden rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flashspec.heads.base import project
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead

ROWS = 256  # scored at once


def agreement(head: FlashHead, dense: DenseHead, rows: Tensor) -> float:
    """Share of rows [n, hidden] whose best id is the dense head's."""
    same = [_best(head, part) == _best(dense, part) for part in _parts(rows)]
    return torch.cat(same).double().mean().item()


@torch.no_grad()
def required_probes(head: FlashHead, dense: DenseHead, rows: Tensor) -> Tensor:
    """Probes [n] that top selection needs before it scores the dense head's best id; 0 where that id is always scored."""
    found = [_rank(head, part, _best(dense, part)) for part in _parts(rows)]
    return torch.cat(found)


def calibrate_always(head: FlashHead, dense: DenseHead, rows: Tensor, count: int = 64, least: int = 1) -> tuple[int, ...]:
    """Up to `count` ids to score always: those missed at least `least` times on held-out rows, most often missed first.

    What `head` scores always now comes first and stays. A small set of frequent tokens makes up about half of all misses on
    Qwen3-0.6B (TurboHead); see `with_always`. ValueError where there are no rows.
    """
    if count < 1 or least < 1:
        raise ValueError(f"count and least must be at least 1, got {count} and {least}")
    if not len(rows):
        raise ValueError("the calibration set is empty; give hidden rows [n, hidden] of held-out text")
    often = missed(head, dense, rows)
    order = torch.argsort(often, descending=True, stable=True)[:count]
    new = order[often[order] >= least].tolist()
    return tuple([*head.plan.always, *new][:count])


def missed(head: FlashHead, dense: DenseHead, rows: Tensor) -> Tensor:
    """How many times [V] each id was the dense head's best on rows [n, hidden] and was not scored by top selection."""
    wanted = torch.cat([_best(dense, part) for part in _parts(rows)])
    lost = wanted[required_probes(head, dense, rows) > head.probes]
    return torch.bincount(lost, minlength=head.vocab_size)


def _rank(head: FlashHead, rows: Tensor, wanted: Tensor) -> Tensor:
    """Rank among the clusters of the better home of every wanted id [n], 0 where the id is always scored."""
    likeness = project(head.norm(rows), head.table.directions)
    mine = likeness.gather(1, head.clusters.assignments[wanted][:, None])
    if head.clusters.second is not None:
        second = head.clusters.second[wanted][:, None]
        other = likeness.gather(1, second.clamp(min=0)).masked_fill(second < 0, -torch.inf)
        mine = torch.maximum(mine, other)
    rank = (likeness > mine).sum(1) + 1
    always = torch.tensor(head.plan.always, dtype=torch.int64, device=wanted.device)
    return rank.masked_fill(torch.isin(wanted, always), 0)


def _best(head: FlashHead | DenseHead, rows: Tensor) -> Tensor:
    scores = head(rows)
    return scores.pick(scores.logits.argmax(1))


def _parts(rows: Tensor) -> Iterator[Tensor]:
    if not len(rows):
        raise ValueError("at least one hidden row is needed to compare two heads, got none")
    return iter(rows.split(ROWS))

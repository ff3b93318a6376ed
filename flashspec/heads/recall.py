"""How often a clustered head finds the dense head's token, on given hidden rows."""

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
    """Probes [n] needed to score the dense head's best id; 0 where it is always scored."""
    found = list[Tensor]()
    always = torch.tensor(head.plan.always, dtype=torch.int64, device=rows.device)
    for part in _parts(rows):
        wanted, likeness = _best(dense, part), project(head.states(part), head.table.directions)
        mine = likeness.gather(1, head.clusters.assignments[wanted][:, None])
        found.append(((likeness > mine).sum(1) + 1).masked_fill(torch.isin(wanted, always), 0))
    return torch.cat(found)


def calibrate_always(head: FlashHead, dense: DenseHead, rows: Tensor, count: int = 64) -> tuple[int, ...]:
    """Up to `count` ids to score always: the current ones, then those missed most often on held-out rows [n, hidden].

    ValueError where there are no rows.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    wanted = torch.cat([_best(dense, part) for part in _parts(rows)])
    often = torch.bincount(wanted[required_probes(head, dense, rows) > head.probes], minlength=head.vocab_size)
    order = torch.argsort(often, descending=True, stable=True)[:count]
    return (*head.plan.always, *order[often[order] > 0].tolist())[:count]


def _best(head: FlashHead | DenseHead, rows: Tensor) -> Tensor:
    scores = head(rows)
    return scores.pick(scores.logits.argmax(1))


def _parts(rows: Tensor) -> Iterator[Tensor]:
    if not len(rows):
        raise ValueError("at least one hidden row of held-out text is needed to compare two heads, got none")
    return iter(rows.split(ROWS))

"""Heads and weights with random numbers: true costs, meaningless quality."""

from __future__ import annotations

import torch
from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.candidates import PreviewHead, sizes
from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.flash import FlashHead
from flashspec.kernels import Packed
from flashspec.models.synthetic import random_rows

CLUSTER = 16  # ids of a cluster


def stand_in_flash(weight: Tensor | Packed, norm: Norm | None, seed: int = 0) -> FlashHead:
    """A FlashHead of one probe over seeded arbitrary clusters: the cost of a trained one, without its quality."""
    (vocab, width), dice = weight.shape, torch.Generator().manual_seed(seed)
    count = -(-vocab // CLUSTER)
    assignments = torch.randperm(count * CLUSTER, generator=dice)[:vocab] // CLUSTER
    made = (assignments, members_of(assignments, count, CLUSTER), random_rows(count, width, seed=seed))
    return FlashHead.build(weight, norm, Clusters(*(part.to(weight.device) for part in made)), probes=1)


def low_rank_rows(vocab: int, width: int, rank: int, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Seeded weight [vocab, width], float32: products of rank `rank` plus noise of `noise` times their size.

    As in trained weights, many rows share directions that they can be clustered by.
    """
    dice = torch.Generator().manual_seed(seed)
    rows, directions = torch.randn(vocab, rank, generator=dice), torch.randn(rank, width, generator=dice)
    return torch.randn(vocab, width, generator=dice).mul_(noise).addmm_(rows, directions, alpha=rank**-0.5)


def stand_in_preview(weight: Tensor, norm: Norm | None = None) -> PreviewHead:
    """A preview head of the default size with arbitrary directions: nothing is decomposed."""
    vocab, width = weight.shape
    rank, candidates = sizes(vocab, width)
    basis, preview = (random_rows(count, size, weight.dtype) for count, size in ((rank, width), (vocab, rank)))
    return PreviewHead(norm, weight, candidates, basis.to(weight.device), preview.to(weight.device))

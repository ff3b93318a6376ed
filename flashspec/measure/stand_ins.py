"""Heads for cost measurements on random weights: the true number of bytes and operations, nothing about quality."""

from __future__ import annotations

import torch
from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.candidates import PreviewHead, sizes
from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.flash import FlashHead
from flashspec.models.synthetic import random_rows


def stand_in_flash(weight: Tensor, norm: Norm | None, probes: int, cluster_size: int = 16, seed: int = 0) -> FlashHead:
    """A FlashHead over seeded arbitrary clusters of exact size: costs what a trained one costs, agrees with nothing."""
    vocab, width = weight.shape
    count = -(-vocab // cluster_size)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    assignments = torch.empty(vocab, dtype=torch.int64).scatter_(0, order, torch.arange(vocab) // cluster_size)
    parts = assignments, members_of(assignments, count, cluster_size), random_rows(count, width, seed=seed)
    clusters = Clusters(*(part.to(weight.device) for part in parts))
    return FlashHead.build(weight, norm, clusters, probes=probes)


def low_rank_rows(vocab: int, width: int, rank: int, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Seeded weight [vocab, width], float32: products of rank `rank` plus noise of `noise` times their size.

    Trained weights have directions that many rows share; so do these, where `random_rows` has none to cluster by.
    """
    if rank > width:
        raise ValueError(f"rank must be at most the width {width}, got {rank}")
    dice = torch.Generator().manual_seed(seed)
    rows, directions = torch.randn(vocab, rank, generator=dice), torch.randn(rank, width, generator=dice)
    return torch.randn(vocab, width, generator=dice).mul_(noise).addmm_(rows, directions, alpha=rank**-0.5)


def stand_in_preview(weight: Tensor, norm: Norm | None = None) -> PreviewHead:
    """A preview head of the default size with arbitrary directions: nothing is decomposed."""
    vocab, width = weight.shape
    rank, candidates = sizes(vocab, width)
    basis, preview = (random_rows(count, size, weight.dtype) for count, size in ((rank, width), (vocab, rank)))
    return PreviewHead(norm, weight, basis.to(weight.device), preview.to(weight.device), candidates)

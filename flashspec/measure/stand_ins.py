"""Heads for cost measurements on random weights: the true number of bytes and operations, nothing about quality."""

from __future__ import annotations

import torch
from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.cluster import from_assignments
from flashspec.heads.flash import FlashHead, FlashPlan


def stand_in_flash(weight: Tensor, norm: Norm | None, probes: int, cluster_size: int = 16, seed: int = 0) -> FlashHead:
    """A FlashHead over seeded arbitrary clusters of exact size: costs what a trained one costs, agrees with nothing."""
    vocab = weight.shape[0]
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    assignments = torch.empty(vocab, dtype=torch.int64).scatter_(0, order, torch.arange(vocab) // cluster_size)
    clusters = from_assignments(weight, assignments.to(weight.device), cluster_size)
    return FlashHead.build(weight, norm, clusters, FlashPlan(cluster_size, probes, seed=seed))

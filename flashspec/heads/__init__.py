"""Vocabulary heads: hidden rows in, scores out."""

from flashspec.heads.base import Head
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead, FlashPlan
from flashspec.heads.recall import agreement, calibrate_always, calibrated, probes_for, required_probes

__all__ = [
    "Clusters", "DenseHead", "FlashHead", "FlashPlan", "Head", "Recipe",
    "agreement", "calibrate_always", "calibrated", "cluster", "probes_for", "required_probes",
]  # fmt: skip

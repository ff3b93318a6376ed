"""Vocabulary heads: hidden rows in, scores out."""

from flashspec.heads.base import Head
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.plan import FlashPlan
from flashspec.heads.public import is_public, load_public, save_public
from flashspec.heads.quantized import QuantizedDenseHead
from flashspec.heads.recall import agreement, calibrate_always, calibrated, missed, probes_for, required_probes

__all__ = [
    "Clusters", "DenseHead", "FlashHead", "FlashPlan", "Head", "QuantizedDenseHead", "Recipe",
    "agreement", "calibrate_always", "calibrated", "cluster", "is_public", "load_public", "missed", "probes_for", "required_probes", "save_public",
]  # fmt: skip

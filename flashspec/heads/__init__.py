"""Vocabulary heads: hidden rows in, scores out."""

from flashspec.heads.base import Head
from flashspec.heads.candidates import ContextHead, PreviewHead, ShortlistHead, ranked_by_frequency
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.dense import DenseHead, LogitRows, quantized
from flashspec.heads.flash import FlashHead, FlashPlan
from flashspec.heads.index import IndexHead
from flashspec.heads.public import is_public, load_public
from flashspec.heads.recall import agreement, calibrate_always, required_probes
from flashspec.heads.registry import HEADS, Origin, head_named

__all__ = [
    "Clusters", "ContextHead", "DenseHead", "FlashHead", "FlashPlan", "HEADS", "Head", "IndexHead", "LogitRows", "Origin",
    "PreviewHead", "Recipe", "ShortlistHead", "agreement", "calibrate_always", "cluster",
    "head_named", "is_public", "load_public", "quantized", "ranked_by_frequency", "required_probes",
]  # fmt: skip

"""Vocabulary heads: hidden rows in, scores out."""

from flashspec.heads.base import Head
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.context import ContextHead
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.index import IndexHead, IndexPlan
from flashspec.heads.plan import FlashPlan
from flashspec.heads.preview import PreviewHead
from flashspec.heads.public import is_public, load_public, save_public
from flashspec.heads.quantized import QuantizedDenseHead
from flashspec.heads.recall import agreement, calibrate_always, missed, required_probes
from flashspec.heads.registry import HEADS, Origin, head_named
from flashspec.heads.shortlist import ShortlistHead, ranked_by_frequency

__all__ = [
    "Clusters", "ContextHead", "DenseHead", "FlashHead", "FlashPlan", "HEADS", "Head", "IndexHead", "IndexPlan", "Origin",
    "PreviewHead", "QuantizedDenseHead", "Recipe", "ShortlistHead", "agreement", "calibrate_always", "cluster", "head_named",
    "is_public", "load_public", "missed", "ranked_by_frequency", "required_probes", "save_public",
]  # fmt: skip

"""Vocabulary heads: hidden rows in, scores out."""

from flashspec.heads.base import DenseHead, Head, LogitRows, quantized
from flashspec.heads.candidates import ContextHead, IndexHead, PreviewHead, ShortlistHead, ranked_by_frequency
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.flash import FlashHead, FlashPlan, agreement, calibrate_always, required_probes
from flashspec.heads.registry import HEADS, Origin, head_named, is_public, load_public

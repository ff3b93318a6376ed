"""The public FlashHead checkpoint layout: a Hugging Face folder with clusters beside it, as Embedl's repository reads it.

config.json, or its `text_config`, switches the head on with `flash_head_cache_dir`. That folder holds
clustering_cache.safetensors with `centroids` [1, 1, D, K] (or [D, K]; columns of any length) and
`cluster_assignments` [V], every cluster equally often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.flash import FlashHead
from flashspec.heads.storage import HeadFile
from flashspec.models.files import PublicHead, ids_of, shaped
from flashspec.models.folder import inside, read_config, read_tensors

CACHE = "clustering_cache.safetensors"


def is_public(folder: Path | str) -> bool:
    """Whether a checkpoint folder switches a FlashHead on in the public layout."""
    return (Path(folder) / "config.json").is_file() and _options(Path(folder)).flash_head_cache_dir is not None


def load_public(folder: Path | str, weight: Tensor, norm: Norm | None = None) -> FlashHead:
    """The FlashHead of a folder in the public layout, over its model's `weight` [V, D].

    Raises FileNotFoundError where a file is missing; ValueError where clusters are unequal, belong to another
    vocabulary or width, or the folder's probes or special ids do not exist.
    """
    folder = Path(folder)
    options = _options(folder)
    if options.flash_head_cache_dir is None:
        raise ValueError(f"{folder / 'config.json'} has no flash_head_cache_dir; this is not a checkpoint with a FlashHead")
    path = inside(folder, f"{options.flash_head_cache_dir}/{CACHE}", folder / "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole FlashHead checkpoint, assets included")
    file = HeadFile(path, read_tensors(path, "fetch it again")[0], {})
    if not {"centroids", "cluster_assignments"} <= file.tensors.keys():
        raise ValueError(f"{path.name} holds no centroids and cluster_assignments; it is not a FlashHead cache")
    clusters = _clusters(file.tensors["centroids"], file.numbers("cluster_assignments", 1).long(), weight)
    special = tuple(dict.fromkeys(ids_of(options.flash_head_special_token_ids)))
    probes = options.n_probes or max(1, clusters.count // 16)
    return FlashHead.build(weight, norm, clusters, probes=probes, always=special)


def _options(folder: Path) -> PublicHead:
    """The options at the top of config.json, those of its text_config where the top has none."""
    raw, path = read_config(folder), folder / "config.json"
    nested = shaped(raw.get("text_config") or {}, dict[str, Any], path)
    return shaped(nested | {name: value for name, value in raw.items() if value is not None}, PublicHead, path)


def _clusters(centroids: Tensor, assignments: Tensor, weight: Tensor) -> Clusters:
    """Clusters of centroids [.., D, K] and assignments [V]; ValueError where they cannot be."""
    vocab, width = weight.shape
    if centroids.ndim < 2 or centroids.shape[-2] != width or centroids.numel() != width * centroids.shape[-1]:
        raise ValueError(f"centroids have the shape [1, 1, {width}, clusters] here, got {list(centroids.shape)}")
    count = centroids.shape[-1]
    if int(assignments.min()) < 0 or int(assignments.max()) >= count:
        raise ValueError(f"cluster numbers run from 0 to {count - 1}, got {int(assignments.min())}..{int(assignments.max())}")
    means = centroids.reshape(width, count).T.float().contiguous().to(weight.device)
    assignments = assignments.to(weight.device)
    return Clusters(assignments, members_of(assignments, count, vocab // count), means)

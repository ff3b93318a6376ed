"""The public FlashHead checkpoint layout: a Hugging Face folder with clusters beside it, as Embedl's repository reads it.

config.json switches the head on with `flash_head_cache_dir`; `n_probes` and `flash_head_special_token_ids` are optional, and
all three may lie in a nested `text_config`. The folder it names holds clustering_cache.safetensors with `centroids`
[1, 1, D, K] (or [D, K]; columns are centroids of any length) and `cluster_assignments` [V], every cluster equally often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from msgspec.structs import astuple
from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.flash import FlashHead
from flashspec.heads.storage import stored
from flashspec.heads.table import FlashPlan
from flashspec.models.config import FLASH_HEAD
from flashspec.models.files import PublicHead, ids_of, shaped
from flashspec.models.folder import Tensors, inside, read_config, read_tensors
from flashspec.models.writing import write_json, write_tensors

SWITCH, SPECIAL, PROBES = "flash_head_cache_dir", "flash_head_special_token_ids", "n_probes"
ASSETS, CACHE, FACTS = "flash_head_assets", "clustering_cache.safetensors", "clustering_config.json"
WEIGHTS = ("lm_head.weight", "model.lm_head.weight", "transformer.lm_head.weight", "model.embed_tokens.weight")


def is_public(folder: Path | str) -> bool:
    """Whether a checkpoint folder switches a FlashHead on in the public layout."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and bool(_options(read_config(folder), folder).flash_head_cache_dir)


def load_public(folder: Path | str, weight: Tensor | None = None, norm: Norm | None = None) -> FlashHead:
    """The FlashHead of a folder in the public layout, over `weight` [V, D] or the one that the folder holds.

    Raises FileNotFoundError where a file is missing; ValueError where clusters are unequal, belong to another vocabulary or
    width, or the folder's probes or special ids do not exist.
    """
    folder = Path(folder)
    options = _options(read_config(folder), folder)
    if not options.flash_head_cache_dir:
        raise ValueError(f"{folder / 'config.json'} has no {SWITCH}; this is not a checkpoint with a FlashHead")
    weight = public_weight(folder) if weight is None else weight
    clusters = _clusters(inside(folder, f"{options.flash_head_cache_dir}/{CACHE}", folder / "config.json"), weight)
    special = tuple(dict.fromkeys(ids_of(options.flash_head_special_token_ids)))
    plan = FlashPlan(clusters.size, options.n_probes or max(1, clusters.count // 16), special)
    return FlashHead.build(weight, norm, clusters, plan)


def public_weight(folder: Path | str) -> Tensor:
    """The vocabulary weight [V, D] of a checkpoint folder: its lm_head, or its embedding where the two are tied."""
    tensors = Tensors(Path(folder))
    names = [name for name in WEIGHTS if name in tensors.where]
    names += [name for ending in WEIGHTS for name in sorted(tensors.where) if name.endswith("." + ending)]
    if not names:
        raise ValueError(f"{folder} holds neither lm_head.weight nor an embedding; copy the whole checkpoint")
    found = tensors.any(names[0])
    if found.ndim != 2 or not found.is_floating_point():
        raise ValueError(f"{names[0]} of {folder} is no matrix of floating-point numbers; copy the whole checkpoint")
    vocab = _options(read_config(Path(folder)), Path(folder)).vocab_size
    return found.T.contiguous() if vocab is not None and found.shape[0] != vocab == found.shape[1] else found


def save_public(head: FlashHead, folder: Path | str) -> None:
    """Add the clusters of a head to the checkpoint folder of its model; config.json, the switch, is written last.

    Raises ValueError where the layout cannot hold this head (clusters padded, or ids with two homes), FileNotFoundError where
    the folder has no config.json.
    """
    folder, clusters = Path(folder), head.clusters
    raw = read_config(folder)
    _refuse_unequal(torch.bincount(clusters.assignments, minlength=clusters.count), clusters.vocab_size)
    if clusters.homes > 1:
        raise ValueError("the public layout gives every id one cluster, and this head gives it two; build one with homes=1")
    (folder / ASSETS).mkdir(exist_ok=True)
    tensors = {
        "centroids": clusters.centroids.T[None, None].contiguous().cpu(),
        "cluster_assignments": clusters.assignments.cpu(),
    }
    write_tensors(tensors, folder / ASSETS / CACHE)
    facts = {"format": "safetensors", "vocab_size": clusters.vocab_size, "hidden_size": head.hidden}
    write_json(facts, folder / ASSETS / FACTS)
    write_json(_switched_on(raw, head), folder / "config.json")


def _switched_on(raw: dict[str, Any], head: FlashHead) -> dict[str, Any]:
    prefix = FLASH_HEAD["architectures"]
    names = [prefix + name.removeprefix(prefix) for name in raw.get("architectures") or []]
    special = list(head.plan.always) or None
    return raw | {"architectures": names, SWITCH: ASSETS, SPECIAL: special, PROBES: head.probes,
                  "n_clusters": head.clusters.count, "enforce_equal_cluster_sizes": True}  # fmt: skip


def _options(raw: dict[str, Any], folder: Path) -> PublicHead:
    """The options at the top of config.json, those of its text_config where the top has none."""
    found = shaped(raw, PublicHead, folder / "config.json")
    nested = found.text_config or PublicHead()
    whole = (value if value is not None else other for value, other in zip(astuple(found), astuple(nested), strict=True))
    return PublicHead(*whole)


def _clusters(path: Path, weight: Tensor) -> Clusters:
    """The clusters of a cache file, for this weight [V, D]."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole FlashHead checkpoint, assets included")
    tensors, _ = read_tensors(path, "fetch it again")
    if not {"centroids", "cluster_assignments"} <= tensors.keys():
        raise ValueError(f"{path.name} holds no centroids and cluster_assignments; it is not a FlashHead cache")
    return _checked(tensors["centroids"], stored(tensors, "cluster_assignments", 1, path).long(), weight)


def _checked(centroids: Tensor, assignments: Tensor, weight: Tensor) -> Clusters:
    """Clusters of stored centroids [.., D, K] and assignments [V]; ValueError where they are not of this weight [V, D]."""
    vocab, width = weight.shape
    if assignments.shape != (vocab,):
        raise ValueError(f"these clusters are of {assignments.numel()} ids and the weight has {vocab}; use the model's own")
    if centroids.ndim < 2 or centroids.shape[-2] != width or centroids.numel() != width * centroids.shape[-1]:
        raise ValueError(f"centroids have the shape [1, 1, {width}, clusters] here, got {list(centroids.shape)}")
    columns = centroids.reshape(width, -1)
    count = columns.shape[1]
    if int(assignments.min()) < 0 or int(assignments.max()) >= count:
        raise ValueError(f"cluster numbers run from 0 to {count - 1}, got {int(assignments.min())}..{int(assignments.max())}")
    _refuse_unequal(torch.bincount(assignments, minlength=count), vocab)
    assignments = assignments.to(weight.device)
    means = columns.T.float().contiguous().to(weight.device)
    return Clusters(assignments, members_of(assignments, count, vocab // count), means)


def _refuse_unequal(filled: Tensor, vocab: int) -> None:
    least, most = int(filled.min()), int(filled.max())
    if least != most:
        raise ValueError(
            f"the public layout needs clusters of one size, but {len(filled)} clusters of {vocab} ids hold {least} to {most}; "
            "build them with a cluster_size that divides the vocabulary"
        )

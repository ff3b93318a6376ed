"""The public FlashHead checkpoint layout: a Hugging Face folder with clusters beside it, as Embedl's repository reads it.

config.json switches the head on with `flash_head_cache_dir`; `n_probes` and `flash_head_special_token_ids` are optional, and
all three may lie in a nested `text_config`. The folder it names holds clustering_cache.safetensors with `centroids`
[1, 1, D, K] (or [D, K]; columns are centroids of any length) and `cluster_assignments` [V], every cluster equally often.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.base import Norm
from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.flash import FlashHead
from flashspec.heads.table import FlashPlan
from flashspec.model.checkpoint import Tensors, read_config
from flashspec.model.config import FLASH_HEAD

SWITCH, SPECIAL, PROBES = "flash_head_cache_dir", "flash_head_special_token_ids", "n_probes"
ASSETS, CACHE, FACTS = "flash_head_assets", "clustering_cache.safetensors", "clustering_config.json"
WEIGHTS = ("lm_head.weight", "model.lm_head.weight", "transformer.lm_head.weight", "model.embed_tokens.weight")


def is_public(folder: Path | str) -> bool:
    """Whether a checkpoint folder switches a FlashHead on in the public layout."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and bool(_option(read_config(folder), SWITCH))


def load_public(folder: Path | str, weight: Tensor | None = None, norm: Norm | None = None) -> FlashHead:
    """The FlashHead of a folder in the public layout, over `weight` [V, D] or the one that the folder holds.

    Raises FileNotFoundError where a file is missing; ValueError where clusters are unequal, belong to another vocabulary or
    width, or the folder's probes or special ids do not exist.
    """
    folder = Path(folder)
    raw = read_config(folder)
    assets = _option(raw, SWITCH)
    if not assets:
        raise ValueError(f"{folder / 'config.json'} has no {SWITCH}; this is not a checkpoint with a FlashHead")
    weight = public_weight(folder) if weight is None else weight
    clusters = _clusters(folder / assets / CACHE, weight)
    probes = _option(raw, PROBES)
    plan = FlashPlan(clusters.size, max(1, clusters.count // 16) if probes is None else int(probes), _special(raw))
    return FlashHead.build(weight, norm, clusters, plan)


def public_weight(folder: Path | str) -> Tensor:
    """The vocabulary weight [V, D] of a checkpoint folder: its lm_head, or its embedding where the two are tied."""
    from safetensors import safe_open

    tensors = Tensors(Path(folder))
    names = [name for name in WEIGHTS if name in tensors.where]
    names += [name for ending in WEIGHTS for name in sorted(tensors.where) if name.endswith("." + ending)]
    if not names:
        raise ValueError(f"{folder} holds neither lm_head.weight nor an embedding; copy the whole checkpoint")
    with safe_open(tensors.where[names[0]], "pt") as file:
        found = file.get_tensor(names[0])
    vocab = _option(read_config(Path(folder)), "vocab_size")
    return found.T.contiguous() if vocab is not None and found.shape[0] != vocab == found.shape[1] else found


def save_public(head: FlashHead, folder: Path | str) -> None:
    """Add the clusters of a head to the checkpoint folder of its model; config.json, the switch, is written last.

    Raises ValueError where the layout cannot hold this head (clusters padded, or ids with two homes), FileNotFoundError where
    the folder has no config.json.
    """
    from safetensors.torch import save_file

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
    part = folder / ASSETS / (CACHE + ".part")
    save_file(tensors, part)
    part.replace(folder / ASSETS / CACHE)
    facts = {"format": "safetensors", "vocab_size": clusters.vocab_size, "hidden_size": head.hidden}
    _write(folder / ASSETS / FACTS, facts)
    _write(folder / "config.json", _switched_on(raw, head))


def _switched_on(raw: dict[str, Any], head: FlashHead) -> dict[str, Any]:
    prefix = FLASH_HEAD["architectures"]
    names = [prefix + name.removeprefix(prefix) for name in raw.get("architectures") or []]
    special = list(head.plan.always) or None
    return raw | {"architectures": names, SWITCH: ASSETS, SPECIAL: special, PROBES: head.probes,
                  "n_clusters": head.clusters.count, "enforce_equal_cluster_sizes": True}  # fmt: skip


def _write(path: Path, facts: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(facts, indent=2) + "\n")
    part.replace(path)


def _option(raw: dict[str, Any], name: str) -> Any:
    """An option at the top of config.json, or in its text_config."""
    nested = raw.get("text_config") or {}
    return raw[name] if raw.get(name) is not None else nested.get(name)


def _special(raw: dict[str, Any]) -> tuple[int, ...]:
    found = _option(raw, SPECIAL)
    ids = [] if found is None else found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(int(v) for v in ids))


def _clusters(path: Path, weight: Tensor) -> Clusters:
    """The clusters of a cache file, for this weight [V, D]."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole FlashHead checkpoint, assets included")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or incomplete ({error}); fetch it again") from None
    if not {"centroids", "cluster_assignments"} <= tensors.keys():
        raise ValueError(f"{path.name} holds no centroids and cluster_assignments; it is not a FlashHead cache")
    return _checked(tensors["centroids"], tensors["cluster_assignments"].long(), weight)


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

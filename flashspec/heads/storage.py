"""FlashHead on disk: the clusters, the plan, and the digest of the weight they belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashspec.heads.cluster import Clusters
from flashspec.heads.table import assignments_of

if TYPE_CHECKING:
    from flashspec.heads.flash import FlashHead, FlashPlan

FILE = "flash_head.safetensors"
KEY = "flash_head"


def weight_digest(weight: Tensor) -> str:
    """SHA-256 of the rows as float32 numbers, so a bfloat16 weight and its float32 copy have the same one."""
    found = hashlib.sha256()
    for part in weight.detach().split(4096):
        found.update(part.float().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save(head: FlashHead, path: Path) -> None:
    """Write one safetensors file with JSON metadata in its header; an interrupted write leaves no file of that name."""
    from safetensors.torch import save_file

    path = path / FILE if path.is_dir() else path
    facts = {**_shape(head.weight), "weight_sha256": weight_digest(head.weight), "plan": asdict(head.plan)}
    tensors = {"members": head.clusters.members.int().cpu(), "centroids": head.clusters.centroids.cpu().contiguous()}
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={KEY: json.dumps(facts)})
    part.replace(path)


def load(path: Path, weight: Tensor) -> tuple[Clusters, FlashPlan]:
    """Clusters and plan of a file that `save` wrote for this weight; ValueError or FileNotFoundError in words otherwise."""
    from flashspec.heads.flash import FlashPlan

    path = path / FILE if path.is_dir() else path
    tensors, facts = _read(path)
    for name, here in _shape(weight).items():
        if facts[name] != here:
            raise ValueError(
                f"{path.name} was built for {name} {facts[name]}, but this weight has {here}; build one for this model"
            )
    if facts["weight_sha256"] != weight_digest(weight):
        raise ValueError(
            f"{path.name} was built from another weight of this shape; build one for this model with FlashHead.build"
        )
    members = tensors["members"].long()
    places = (assignments_of(members, weight.shape[0]), members, tensors["centroids"])
    plan = facts["plan"]
    return Clusters(*(t.to(weight.device) for t in places)), FlashPlan(**{**plan, "always": tuple(plan["always"])})


def _shape(weight: Tensor) -> dict[str, int]:
    return {"vocab_size": weight.shape[0], "hidden": weight.shape[1]}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"there is no FlashHead file {path}; build one with FlashHead.build(weight, ...).save(path)")
    try:
        with safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or incomplete ({error}); build the head again") from error
    if facts is None or not {"members", "centroids"} <= tensors.keys():
        raise ValueError(f"{path.name} is a safetensors file, but not of a FlashHead; choose one that FlashHead.save wrote")
    return tensors, json.loads(facts)

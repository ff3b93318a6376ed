"""Heads on disk: their state, and the digest of the weight they belong to; the weight itself is never written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashspec.heads.cluster import Clusters
from flashspec.heads.plan import FlashPlan
from flashspec.heads.table import assignments_of
from flashspec.model.writing import write_tensors

if TYPE_CHECKING:
    from flashspec.heads.flash import FlashHead

FILE = "flash_head.safetensors"
KEY = "flash_head"
TITLES = {KEY: "FlashHead"}


def weight_digest(weight: Tensor) -> str:
    """SHA-256 of the rows as float32 numbers, so a bfloat16 weight and its float32 copy have the same one."""
    found = hashlib.sha256()
    for part in weight.detach().split(4096):
        found.update(part.float().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(path: Path, key: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write one safetensors file with JSON facts in its header; an interrupted write leaves no file of that name."""
    write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {key: json.dumps(facts)})


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write` wrote under this key; ValueError or FileNotFoundError in words otherwise."""
    from safetensors import SafetensorError, safe_open

    title = TITLES.get(key, key)
    if not path.exists():
        raise FileNotFoundError(f"there is no {title} file {path}; build one with {title}.build(weight, ...).save(path)")
    try:
        with safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get(key)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or incomplete ({error}); build the head again") from error
    if facts is None:
        raise ValueError(f"{path.name} is a safetensors file, but not of a {title}; choose one that {title}.save wrote")
    return tensors, json.loads(facts)


def identity(weight: Tensor) -> dict[str, Any]:
    """Facts that tell whether a file belongs to this weight: its shape and its digest."""
    return {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}


def refuse_another(path: Path, facts: dict[str, Any], weight: Tensor) -> None:
    """Refuse facts that `identity` gave for another weight than this one."""
    for name, here in {"vocab_size": weight.shape[0], "hidden": weight.shape[1]}.items():
        if facts[name] != here:
            raise ValueError(
                f"{path.name} was built for {name} {facts[name]}, but this weight has {here}; build one for this model"
            )
    if facts["weight_sha256"] != weight_digest(weight):
        raise ValueError(f"{path.name} was built from another weight of this shape; build one for this model again")


def save(head: FlashHead, path: Path) -> None:
    """Write the clusters and the plan of a FlashHead, not the weight."""
    clusters = head.clusters
    tensors = {"members": clusters.members.int(), "centroids": clusters.centroids}
    if clusters.second is not None:
        tensors["second"] = clusters.second.int()
    path = path / FILE if path.is_dir() else path
    write(path, KEY, tensors, {**identity(head.weight), "plan": asdict(head.plan)})


def load(path: Path, weight: Tensor) -> tuple[Clusters, FlashPlan]:
    """Clusters and plan of a file that `save` wrote for this weight; ValueError or FileNotFoundError in words otherwise."""
    path = path / FILE if path.is_dir() else path
    tensors, facts = read(path, KEY)
    refuse_another(path, facts, weight)
    members = tensors["members"].long()
    second = tensors["second"].long().to(weight.device) if "second" in tensors else None
    assignments, members, centroids = (
        t.to(weight.device) for t in (assignments_of(members, weight.shape[0]), members, tensors["centroids"])
    )
    plan = facts["plan"]
    return Clusters(assignments, members, centroids, second), FlashPlan(**{**plan, "always": tuple(plan["always"])})

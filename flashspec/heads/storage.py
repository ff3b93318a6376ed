"""Heads on disk: their state, and the digest of the weight they belong to; the weight itself is never written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from torch import Tensor

from flashspec.heads.cluster import Clusters
from flashspec.heads.plan import FlashPlan
from flashspec.heads.table import assignments_of
from flashspec.model.files import typed
from flashspec.model.folder import parsed, read_tensors

if TYPE_CHECKING:
    from flashspec.heads.flash import FlashHead

FILE = "flash_head.safetensors"
KEY = "flash_head"
TITLES = {KEY: "FlashHead"}
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Identity(Struct):
    """Which weight a head's file belongs to."""

    vocab_size: int
    hidden: int
    weight_sha256: str


def weight_digest(weight: Tensor) -> str:
    """SHA-256 of the rows as float32 numbers, so a bfloat16 weight and its float32 copy have the same one."""
    found = hashlib.sha256()
    for part in weight.detach().split(4096):
        found.update(part.float().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(path: Path, key: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write one safetensors file with JSON facts in its header; an interrupted write leaves no file of that name."""
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, {key: json.dumps(facts)})
    part.replace(path)


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write` wrote under this key; ValueError or FileNotFoundError in words otherwise."""
    title = TITLES.get(key, key)
    if not path.exists():
        raise FileNotFoundError(f"there is no {title} file {path}; build one with {title}.build(weight, ...).save(path)")
    tensors, header = read_tensors(path, "build the head again")
    if key not in header:
        raise ValueError(f"{path.name} is a safetensors file, but not of a {title}; choose one that {title}.save wrote")
    return tensors, typed(parsed(header[key], path), dict[str, Any], path, "build the head again")


def stored(tensors: dict[str, Tensor], name: str, dimensions: int, path: Path, kinds: tuple[torch.dtype, ...] = WHOLE) -> Tensor:
    """One tensor of a head's file, of whole numbers if not of other `kinds`; ValueError where it is missing or something else."""
    found = tensors.get(name)
    if found is None or found.ndim != dimensions or not found.numel() or found.dtype not in kinds:
        numbers = "whole numbers" if kinds is WHOLE else "float32 numbers"
        raise ValueError(f"{path.name} has no {name} of {numbers} in {dimensions} dimensions; build the head again")
    return found


def identity(weight: Tensor) -> dict[str, Any]:
    """Facts that tell whether a file belongs to this weight: its shape and its digest."""
    return {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}


def refuse_another(path: Path, facts: dict[str, Any], weight: Tensor) -> None:
    """Refuse facts that `identity` gave for another weight than this one."""
    known = typed(facts, Identity, path, "build the head again")
    for name, here in {"vocab_size": weight.shape[0], "hidden": weight.shape[1]}.items():
        if (there := getattr(known, name)) != here:
            raise ValueError(f"{path.name} was built for {name} {there}, but this weight has {here}; build one for this model")
    if known.weight_sha256 != weight_digest(weight):
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
    members = stored(tensors, "members", 2, path).long()
    second = stored(tensors, "second", 1, path).long().to(weight.device) if "second" in tensors else None
    if second is not None and not (len(second) == len(weight) and -1 <= int(second.min()) <= int(second.max()) < len(members)):
        raise ValueError(f"{path.name} has second homes outside its {len(members)} clusters; build the head again")
    assignments, members, centroids = (
        t.to(weight.device)
        for t in (assignments_of(members, len(weight)), members, stored(tensors, "centroids", 2, path, (torch.float32,)))
    )
    return Clusters(assignments, members, centroids, second), typed(facts.get("plan"), FlashPlan, path, "build the head again")

"""Heads on disk: their state, and the digest of the weight they belong to; the weight itself is never written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec import Struct
from torch import Tensor

from flashspec.models.files import shaped
from flashspec.models.folder import parsed, read_tensors
from flashspec.models.writing import write_tensors

FILE = "flash_head.safetensors"
KEY = "flash_head"
TITLES = {KEY: "FlashHead"}
T = TypeVar("T")
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
    write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {key: json.dumps(facts)})


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write` wrote under this key; ValueError or FileNotFoundError in words otherwise."""
    title = TITLES.get(key, key)
    if not path.exists():
        raise FileNotFoundError(f"there is no {title} file {path}; build one with {title}.build(weight, ...).save(path)")
    tensors, header = read_tensors(path, "build the head again")
    if key not in header:
        raise ValueError(f"{path.name} is a safetensors file, but not of a {title}; choose one that {title}.save wrote")
    return tensors, shaped(parsed(header[key], path, "build the head again"), dict[str, Any], path, "build the head again")


def stored(tensors: dict[str, Tensor], name: str, dimensions: int, path: Path, kinds: tuple[torch.dtype, ...] = WHOLE) -> Tensor:
    """One tensor of a head's file, of whole numbers if not of other `kinds`; ValueError where it is missing or something else."""
    found = tensors.get(name)
    if found is None or found.ndim != dimensions or not found.numel() or found.dtype not in kinds:
        numbers = "whole numbers" if kinds is WHOLE else "float32 numbers"
        raise ValueError(f"{path.name} has no {name} of {numbers} in {dimensions} dimensions; build the head again")
    return found


def save_state(path: Path, key: str, weight: Tensor, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write what a head is made of beside its weight, with the shape and digest that tell whether a file belongs to a weight."""
    belongs = {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}
    write(path, key, tensors, {**belongs, **facts})


def load_state(path: Path, key: str, weight: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts that `save_state` wrote for this weight; ValueError where it is another one."""
    tensors, facts = read(path, key)
    known = shaped(facts, Identity, path, "build the head again")
    for name, here in {"vocab_size": weight.shape[0], "hidden": weight.shape[1]}.items():
        if (there := getattr(known, name)) != here:
            raise ValueError(f"{path.name} was built for {name} {there}, but this weight has {here}; build one for this model")
    if known.weight_sha256 != weight_digest(weight):
        raise ValueError(f"{path.name} was built from another weight of this shape; build one for this model again")
    return tensors, facts


def fact(facts: dict[str, Any], name: str, kind: type[T], path: Path) -> T:
    """One fact of a head's file as this type; ValueError where it is missing or something else."""
    return shaped(facts.get(name), kind, path, "build the head again")

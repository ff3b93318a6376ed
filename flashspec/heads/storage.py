"""Heads on disk: their state, and the digest of the weight they belong to; the weight itself is never written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, {key: json.dumps(facts)})
    part.replace(path)


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


def save_state(path: Path, key: str, weight: Tensor, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write what a head is made of beside its weight, with the shape and digest that tell whether a file belongs to a weight."""
    belongs = {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}
    write(path, key, tensors, {**belongs, **facts})


def load_state(path: Path, key: str, weight: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts that `save_state` wrote for this weight; ValueError where it is another one."""
    tensors, facts = read(path, key)
    for name, here in {"vocab_size": weight.shape[0], "hidden": weight.shape[1]}.items():
        if facts[name] != here:
            raise ValueError(
                f"{path.name} was built for {name} {facts[name]}, but this weight has {here}; build one for this model"
            )
    if facts["weight_sha256"] != weight_digest(weight):
        raise ValueError(f"{path.name} was built from another weight of this shape; build one for this model again")
    return tensors, facts

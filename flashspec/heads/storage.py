"""Heads on disk: their state and the digest of the weight they belong to, never the weight itself."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, weight_of
from flashspec.kernels import Packed
from flashspec.kernels.build import cache_folder
from flashspec.models.files import shaped
from flashspec.models.folder import parsed, read_tensors
from flashspec.models.writing import write_tensors
from flashspec.provenance import short_hash
from flashspec.typed import typed

FILE, AGAIN = "flash_head.safetensors", "build the head again"
T = TypeVar("T")
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class HeadFile(NamedTuple):
    """The contents of a head's file."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def numbers(self, name: str, dimensions: int) -> Tensor:
        """A tensor of whole numbers; ValueError where it is missing, empty or something else."""
        found = self.tensors.get(name)
        if found is None or found.ndim != dimensions or not found.numel() or found.dtype not in WHOLE:
            raise ValueError(f"{self.path.name} has no {name} of whole numbers in {dimensions} dimensions; {AGAIN}")
        return found

    def fact(self, name: str, kind: type[T]) -> T:
        """A fact as this type; ValueError where it is missing or something else."""
        return shaped(self.facts.get(name), kind, self.path, AGAIN)


class StoredHead(WeightHead):
    """A head whose state, tensors and facts beside the weight, can be stored and restored."""

    key: ClassVar[str]
    file: ClassVar[str] = ""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON facts to write."""

    @classmethod
    @abstractmethod
    def restored(cls, file: HeadFile, weight: Any, norm: Norm | None) -> Self:
        """The head of this stored state over this weight; ValueError where they do not fit."""

    def save(self, path: Path | str, told: dict[str, Any] | None = None) -> None:
        """Write the head's state with these facts about it; an interrupted write leaves the old file."""
        tensors, facts = self.state()
        facts |= {"told": told} if told else {}
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_tensors(ready, self._place(path), {self.key: json.dumps(identity(self.weight) | facts)})

    @classmethod
    @typed
    def load(cls, path: Path | str, weight: Tensor | Packed, norm: Norm | None = None) -> Self:
        """The head that `save` wrote for this weight; FileNotFoundError or ValueError for any other file."""
        weight, path, kind = weight_of(weight), cls._place(path), cls.__name__
        if not path.exists():
            raise FileNotFoundError(f"there is no {kind} file {path}; build one with {kind}.build(...).save(path)")
        tensors, header = read_tensors(path, AGAIN)
        if cls.key not in header:
            raise ValueError(f"{path.name} is a safetensors file, but not of a {kind}; choose one that {kind}.save wrote")
        file, here = HeadFile(path, tensors, parsed(header[cls.key], dict[str, Any], path, AGAIN)), identity(weight)
        if {name: file.facts.get(name) for name in here} != here:
            there = [file.facts.get("vocab_size"), file.facts.get("hidden")]
            what = f"was built from another weight, {there}, than this one, {list(weight.shape)}"
            raise ValueError(f"{path.name} {what}; build one for it")
        return cls.restored(file, weight, norm)

    @classmethod
    def _place(cls, path: Path | str) -> Path:
        """A file, or the one of the usual name in a folder."""
        return Path(path) / cls.file if Path(path).is_dir() else Path(path)


def kept(weight: Tensor | Packed, norm: Norm | None) -> Path | None:
    """The cache's file for a head over this weight and norm, whether it exists or not; None without a home."""
    home, scale = cache_folder(), getattr(norm, "weight", None)
    own = "" if scale is None else weight_digest(scale.detach()[None])  # models of one weight rarely share the norm
    key = short_hash([weight_digest(weight), own], 16)
    return home and home / "heads" / key / FILE


def identity(weight: Tensor | Packed) -> dict[str, Any]:
    """Which weight a head's file belongs to."""
    return {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}


def weight_digest(weight: Tensor | Packed) -> str:
    """SHA-256 of the rows as float32 numbers, or of a packed weight's codes."""
    found, packed = hashlib.sha256(), isinstance(weight, Packed)
    for part in (weight.cells if isinstance(weight, Packed) else weight.detach()).split(4096):
        found.update((part if packed else part.float()).cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()

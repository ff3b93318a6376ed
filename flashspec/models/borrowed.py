"""Drafts that hold their layers alone and borrow embedding, final norm and vocabulary head from another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from msgspec import Struct, structs
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.pages import Shelf
from flashspec.models.checkpoint import Checkpoint
from flashspec.models.config import ModelConfig, Part
from flashspec.models.files import Count
from flashspec.models.folder import GGUF, Tensors, located, read_as, read_config, verify_digests
from flashspec.models.gguf_checkpoint import GgufCheckpoint
from flashspec.models.packed import PackedLinear
from flashspec.models.pairs import PAIRS, published
from flashspec.models.writing import write_json, write_tensors
from flashspec.provenance import model_digests

KIND, LAYERS = "borrowed", "layers."


class Card(Struct):
    """The config.json of such a draft: the path of its lender ("" for a published model), the SHA-256 of its files, and how
    many layers the draft holds."""

    base: str
    files: dict[str, str]
    layers: Count
    model_type: str = KIND


Source = Checkpoint | GgufCheckpoint


def opened(source: Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto") -> Source | BorrowedCheckpoint:
    """What a transformer is filled from, for a Hugging Face folder, a GGUF file or a draft that borrows."""
    if source.suffix == GGUF:
        return GgufCheckpoint(source, dtype, weights)
    if borrows(source):
        return BorrowedCheckpoint(source, dtype, device, weights)
    return Checkpoint(source, dtype, device, weights)


def borrows(source: Path) -> bool:
    """Whether a checkpoint is a draft that borrows."""
    return source.is_dir() and (source / "config.json").is_file() and read_config(source).get("model_type") == KIND


def speaker(source: Path) -> Path:
    """The checkpoint with a model's tokenizer and chat template: its lender's, or its own."""
    return lender(read_as(source / "config.json", Card)) if borrows(source) else source


def save_borrowed(layers: nn.ModuleList, base: Path, folder: Path) -> None:
    """Write layers, in bfloat16, and the identity of the lender into a folder."""
    tensors = {LAYERS + name: value.detach().bfloat16() for name, value in layers.state_dict().items()}
    write_tensors(tensors, folder / "model.safetensors")
    files = model_digests(base)
    name = "" if _published(files) else str(base.resolve())
    write_json(structs.asdict(Card(name, files, len(layers))), folder / "config.json")


def lender(card: Card) -> Path:
    """The lending model; ValueError if its files have changed, FileNotFoundError if they are gone."""
    if known := _published(card.files):
        return published(*known)
    base = located(card.base)
    if model_digests(base) != card.files:
        raise ValueError(f"{base} is not the model whose embedding this draft borrows any more; bring that back, or train anew")
    return base


def _published(files: dict[str, str]) -> tuple[str, str] | None:
    """Name and role of the published model with these files, whatever their path."""
    named = [(name, role) for name, roles in PAIRS.items() for role, each in roles.items() if [*files.values()] == [each.sha256]]
    return named[0] if named else None


class BorrowedCheckpoint:
    """A draft's own layers, in int8 if the lender's are integers, and the rest of its lender."""

    def __init__(self, folder: Path, dtype: str, device: str, weights: str) -> None:
        verify_digests(folder)
        card = read_as(folder / "config.json", Card)
        self.base = base = opened(lender(card), dtype, device, weights)
        self.tensors, self.shelf = Tensors(folder), Shelf()
        self.device: torch.device = base.device
        self.dtype: torch.dtype = base.dtype
        self.own_bits: bool = base.own_bits
        self.config: ModelConfig = replace(base.config, layers=card.layers)

    def module(self, name: str, part: Part) -> nn.Module | dict[str, Tensor]:
        """The weights of one of our modules."""
        if not name.startswith(LAYERS):
            return self.base.module(name, part)
        found = {leaf: self.tensors.read(f"{name}.{leaf}", part.shape(leaf)).to(self.device, self.dtype) for leaf in part.leaves}
        if not (self.own_bits and part.columns):
            return found
        return PackedLinear([kernels.pack(found["weight"], 8, self.shelf)], found.get("bias"))

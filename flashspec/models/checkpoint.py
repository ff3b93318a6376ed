"""What a transformer is filled from and written to: Hugging Face folders, dense or AWQ, and drafts that borrow.

Such a draft holds its layers alone: embedding, final norm and vocabulary head are another model's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct, structs
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.build import library
from flashspec.kernels.integers import CELL, Shelf
from flashspec.models.config import ModelConfig, Part, from_hf, parts
from flashspec.models.files import Count, Generation, Kind, ids_of, shaped
from flashspec.models.folder import (
    FLOATS,
    GGUF,
    INDEX,
    INTEGERS,
    PAIRS,
    Tensors,
    located,
    published,
    read_as,
    read_config,
    verify_digests,
)
from flashspec.models.gguf import GgufCheckpoint
from flashspec.models.memory import DTYPES, Form, device_named, dtype_named, refuse_too_large
from flashspec.models.packed import NOTHING, Awq, PackedLinear, dequantise, layer, scheme_of
from flashspec.models.writing import replaced, write_json, write_tensors
from flashspec.provenance import model_digests

WEIGHTS = ("auto", "int4", "dense")
PACKED, NUMBERS = ("qweight", "qzeros", "scales"), (INTEGERS, INTEGERS, FLOATS)
SHARD_BYTES = 16_000_000
KIND, LAYERS = "borrowed", "layers."


class Checkpoint:
    """The config and tensors of a folder, and the form and place that its weights take; see `Transformer.load`."""

    own_bits = False  # no matrix is packed in the file's own bits

    def __init__(
        self, folder: Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto", layers: int | None = None
    ) -> None:
        raw, path, self.device = read_config(folder), folder / "config.json", device_named(device)
        config, scheme, generation = from_hf(raw, path), scheme_of(raw, path), folder / "generation_config.json"
        stops = read_as(generation, Generation).eos_token_id if generation.is_file() else None  # transformers prefers these
        config = config if stops is None else replace(config, eos=ids_of(stops))
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r} is not one of: {', '.join(WEIGHTS)}")
        if weights == "int4" and scheme is None:
            raise ValueError(f"{folder} holds no 4-bit weights; use weights='auto', or quantise it first (extra `quantize`)")
        fast = self.device.type == "cuda" or (dtype == "auto" and library() is not None)
        int4 = scheme is not None and (weights == "int4" or (weights == "auto" and fast))
        self.scheme, self.shelf, about = scheme or NOTHING, Shelf(), shaped(raw, Kind, path)
        own = torch.float32 if (about.dtype or about.torch_dtype) == "float32" else torch.bfloat16
        self.dtype = own if dtype == "auto" else dtype_named(dtype)
        group = CELL if self.device.type == "cpu" else self.scheme.group_size  # panels have a scale for every cell
        self.form = Form(self.dtype, group if int4 else 0)
        refuse_too_large(str(folder), replace(config, layers=layers or config.layers), self.form, self.device)
        verify_digests(folder)
        self.tensors = Tensors(folder)
        if config.tied and self._other_head(config):
            config = replace(config, tied=False)
        self.config = config
        self._check_names()

    def _other_head(self, config: ModelConfig) -> bool:
        _, part = next(parts(config))
        names = ("lm_head.weight", *(f"{source}.weight" for source in part.rows))
        if not self.tensors.where.keys() >= set(names):
            return False
        return not torch.equal(*(self.tensors.read(name, part.shape("weight")).to(self.dtype) for name in names))

    def _check_names(self) -> None:
        names, where = set[str](), self.tensors.where
        for _, part in parts(self.config):
            leaves = (*PACKED, *part.leaves[1:]) if self._packed(part) else part.leaves
            for name in (f"{source}.{leaf}" for source in part.rows for leaf in leaves):
                if name not in where:
                    folder = self.tensors.folder
                    raise ValueError(f"tensor {name} is missing from {folder}; the checkpoint does not match its config.json")
                names.add(name)
        passed = ("rotary_emb.inv_freq", *(["lm_head.weight"] if self.config.tied else []))  # carries nothing new
        extra = [name for name in where if name not in names and not name.endswith(passed)]
        if extra:
            raise ValueError(
                f"tensor {extra[0]!r} in {where[extra[0]]} is not part of the model config.json describes "
                f"({len(extra)} such); the weights and config.json belong to different models"
            )

    def _packed(self, part: Part) -> bool:
        kinds = {bool(part.columns) and self.scheme.covers(source) for source in part.rows}
        if len(kinds) > 1:
            raise ValueError(
                f"{', '.join(part.rows)} run as one product but modules_to_not_convert keeps only some of them dense; "
                "quantise them alike"
            )
        return kinds.pop()

    def module(self, name: str, part: Part) -> nn.Module | dict[str, Tensor]:
        """The weights of one of our modules, read to their device."""
        packed = self._packed(part)
        kept = packed and self.form.group > 0
        dense = {leaf: self.shelf.zeros(part.shape(leaf), self.dtype, self.device) for leaf in part.leaves[kept:]}
        for leaf in part.leaves[packed:]:
            for source, rows in part.split(dense[leaf]).items():
                rows.copy_(self.tensors.read(f"{source}.{leaf}", tuple(rows.shape)))
        if kept:
            return layer(self._quantised(part), dense.get("bias"), self.shelf)
        if packed:
            dequantise(self._quantised(part), dense["weight"])
        return dense

    def _quantised(self, part: Part) -> Awq:
        group, columns = self.scheme.group_size, part.columns
        if columns % group:
            name = next(iter(part.rows))
            raise ValueError(f"{name} has {columns} columns, not a multiple of the AWQ group, {group}: load another checkpoint")
        found = []
        for source, rows in part.rows.items():
            shapes = ((columns, rows // 8), (columns // group, rows // 8), (columns // group, rows))
            facts = zip(PACKED, shapes, NUMBERS, strict=True)
            found.append([self.tensors.read(f"{source}.{leaf}", shape, kinds).to(self.device) for leaf, shape, kinds in facts])
        return Awq(*(torch.cat(pieces, dim=1) for pieces in zip(*found, strict=True)))


def hf_tensors(model: nn.Module, config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """A model's weights under Hugging Face names, on the CPU; a tied head is not repeated."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} cannot be saved; use one of: {', '.join(DTYPES)}")
    if any(hasattr(module, "packed") for module in model.modules()):
        raise ValueError("this model runs on integer weights; load it with weights='dense' to save it, and without a format")
    tensors = {}
    for name, part in parts(config):
        for leaf in part.leaves:
            for source, piece in part.split(model.get_parameter(f"{name}.{leaf}")).items():
                tensors[f"{source}.{leaf}"] = piece.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()
    return tensors


def write_folder(folder: str | Path, tensors: dict[str, Tensor], config: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors and a config.json dictionary: everything under temporary names first, then renamed.

    Weights, index and digests of an earlier save are removed.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = split_torch_state_dict_into_shards(tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes)
    shards = plan.filename_to_tensors
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    texts = ({INDEX: index} if plan.is_sharded else {}) | {"config.json": config}
    with ExitStack() as whole:
        places = {name: whole.enter_context(replaced(folder / name)) for name in (*texts, *shards)}
        for name, keys in shards.items():
            write_tensors({key: tensors[key] for key in keys}, places[name], {"format": "pt"})
        for name, value in texts.items():
            write_json(value, places[name])
    for path in [*folder.glob("model*.safetensors"), folder / INDEX, folder / "digests.json"]:
        if path.name not in places:
            path.unlink(missing_ok=True)


class Card(Struct):
    """The config.json of such a draft: the path of its lender ("" for a published model), the SHA-256 of its files, and how
    many layers the draft holds."""

    base: str
    files: dict[str, str]
    layers: Count
    model_type: str = KIND


Source = Checkpoint | GgufCheckpoint


def opened(source: Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto", layers: int | None = None) -> Source:
    """What a transformer is filled from, for a Hugging Face folder, a GGUF file or a draft that borrows.

    Where fewer `layers` will be read than there are, only these must fit the memory.
    """
    if source.suffix == GGUF:
        return GgufCheckpoint(source, dtype, weights, layers)
    if borrows(source):
        return borrowed(source, dtype, device, weights)
    return Checkpoint(source, dtype, device, weights, layers)


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
    known = {model.sha256: (name, role) for name, roles in PAIRS.items() for role, model in roles.items()}
    return known.get(min(files.values())) if len(files) == 1 else None


def borrowed(folder: Path, dtype: str, device: str, weights: str) -> Source:
    """The lender of a draft, with the draft's layers in place of its own: in int8 if those are integers."""
    verify_digests(folder)
    card = read_as(folder / "config.json", Card)
    base = opened(lender(card), dtype, device, weights, card.layers)
    lent, tensors, shelf, shape = base.module, Tensors(folder), Shelf(), replace(base.config, layers=card.layers)
    names = {f"{name}.{leaf}" for name, part in parts(shape) if name.startswith(LAYERS) for leaf in part.leaves}
    if wrong := names ^ tensors.where.keys():
        raise ValueError(f"{folder}: tensor {min(wrong)!r} does not fit its {card.layers} layers; copy the whole folder again")

    def module(name: str, part: Part) -> nn.Module | dict[str, Tensor]:
        if not name.startswith(LAYERS):
            return lent(name, part)
        own = {leaf: tensors.read(f"{name}.{leaf}", part.shape(leaf)) for leaf in part.leaves}
        own = {leaf: tensor.to(base.device, base.dtype) for leaf, tensor in own.items()}
        if not (base.own_bits and part.columns):
            return own
        return PackedLinear([kernels.pack(own["weight"], 8, shelf)], own.get("bias"))

    vars(base).update(config=shape, module=module)
    return base

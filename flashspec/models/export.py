"""Saving a transformer as a Hugging Face folder that transformers and other engines read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.models.awq import Int4Linear
from flashspec.models.config import to_hf
from flashspec.models.names import row_counts, sources
from flashspec.models.transformer import Transformer
from flashspec.models.writing import replaced, write_json, write_tensors

SHARD_BYTES = 16_000_000
INDEX = "model.safetensors.index.json"


def save_transformer(model: Transformer, folder: str | Path, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and safetensors (several, with an index, above `shard_bytes`; one tensor is never split).

    An interrupted save leaves the folder as it was; a completed one removes an earlier save's weights and digests.json.
    Raises ValueError for a model on int4 weights: load it with weights="dense" to export it.
    """
    write_folder(folder, hf_tensors(model, dtype), to_hf(model.config, dtype), shard_bytes)


def hf_tensors(model: Transformer, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """The model's weights under Hugging Face names, on the CPU; a tied head is not repeated."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise ValueError(f"dtype {dtype!r} cannot be saved; use one of: {', '.join(kinds)}")
    if any(isinstance(module, Int4Linear) for module in model.modules()):
        raise ValueError("this model runs on repacked int4 weights; load it with weights='dense' to save it")
    tensors = {}
    for name, value in model.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        counts = row_counts(module, value.shape[0], model.config)
        for source, part in zip(sources(module, model.config), value.split(counts), strict=True):
            tensors[f"{source}.{leaf}"] = part.detach().to("cpu", kinds[dtype], copy=True).contiguous()
    return tensors


def write_folder(folder: str | Path, tensors: dict[str, Tensor], config: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors and a config.json dictionary: everything under temporary names first, then renamed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_bytes)
    texts = ({INDEX: _index(shards, tensors)} if len(shards) > 1 else {}) | {"config.json": config}
    with ExitStack() as whole:
        parts = {name: whole.enter_context(replaced(folder / name)) for name in (*texts, *shards)}
        for name, keys in shards.items():
            write_tensors({key: tensors[key] for key in keys}, parts[name], {"format": "pt"})
        for name, value in texts.items():
            write_json(value, parts[name])
    _remove_stale(folder, [*shards, *texts])


def _remove_stale(folder: Path, names: list[str]) -> None:
    """Drop the weights, index and digests that an earlier save left beside the new files."""
    for path in [*folder.glob("model*.safetensors"), folder / INDEX, folder / "digests.json"]:
        if path.name not in names:
            path.unlink(missing_ok=True)


def _shards(tensors: dict[str, Tensor], limit: int) -> dict[str, list[str]]:
    """File names, each with its tensors' names, cut before the tensor that would exceed the limit.

    A tensor counts 256 bytes more than its data, for its entry in the file's header.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        weight = value.nbytes + 256
        if shards[-1] and size + weight > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weight
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": keys for number, keys in enumerate(shards, 1)}


def _index(shards: dict[str, list[str]], tensors: dict[str, Tensor]) -> dict[str, Any]:
    total = sum(value.nbytes for value in tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}

"""Saving a transformer as a Hugging Face folder that transformers and other engines read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.model.awq import Int4Linear
from flashspec.model.config import to_hf
from flashspec.model.names import row_counts, sources
from flashspec.model.transformer import Transformer

SHARD_BYTES = 16_000_000


def save_transformer(
    model: Transformer, folder: str | Path, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json and safetensors (several, with an index, above `shard_bytes`; one tensor is never split).

    Files appear under their names only when complete; weights of an earlier save are removed, digests.json with them.
    Raises ValueError for a model on int4 weights: load it with weights="dense" to export it.
    """
    folder = Path(folder)
    tensors = hf_tensors(model, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(tensors, folder, shard_bytes)
    write_json(to_hf(model.config, dtype), folder / "config.json")


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
        for source, part in zip(sources(module), value.split(counts)):
            tensors[f"{source}.{leaf}"] = part.detach().to("cpu", kinds[dtype], copy=True).contiguous()
    return tensors


def write_weights(tensors: dict[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors files of at most `shard_bytes` (one tensor is never split), then remove an earlier save's."""
    shards = _shards(tensors, shard_bytes)
    names = _names(len(shards))
    index = folder / "model.safetensors.index.json"
    for shard, name in zip(shards, names):
        _write_shard({key: tensors[key] for key in shard}, folder / name)
    for stale in folder.glob("model*.safetensors"):
        if stale.name not in names:
            stale.unlink()
    (folder / "digests.json").unlink(missing_ok=True)
    if len(names) == 1:
        index.unlink(missing_ok=True)
        return
    total = sum(value.nbytes for value in tensors.values())
    where = {key: name for shard, name in zip(shards, names) for key in shard}
    write_json({"metadata": {"total_size": total}, "weight_map": where}, index)


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.chmod(0o644)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Tensor names in order, cut before the one that would exceed the limit; a name in the file's header takes up to 256 bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        weight = value.nbytes + 256
        if shards[-1] and size + weight > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weight
    return shards


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

"""A transformer from a GGUF file: matrices in the file's own bits for the integer kernels, or widened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from flashspec.kernels.build import library
from flashspec.kernels.integers import Packed
from flashspec.kernels.pages import Shelf
from flashspec.models.config import ModelConfig, Unsupported, from_hf
from flashspec.models.ggml import TYPES, repacked, widened
from flashspec.models.gguf import AGAIN, Entry, Gguf
from flashspec.models.memory import refuse_bytes
from flashspec.models.names import row_counts
from flashspec.models.rounded import PackedEmbedding, PackedLinear
from flashspec.models.transformer import Rope, Transformer

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
LAYER = {
    "attention_norm": ("attn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.q_norm": ("attn_q_norm",),
    "attention.k_norm": ("attn_k_norm",),
    "attention.out": ("attn_output",),
    "mlp_norm": ("ffn_norm",),
    "mlp.gate_up": ("ffn_gate", "ffn_up"),
    "mlp.down": ("ffn_down",),
}
ENDS = {"embed": ("token_embd",), "norm": ("output_norm",), "head": ("output",)}
UNREAD = ("rope_freqs.weight",)


def config_of(file: Gguf) -> ModelConfig:
    """The model's shape; ValueError for a fact that is missing or wrong, Unsupported for what we do not compute."""
    family = file.facts.get("general.architecture")
    if family not in FAMILIES:
        raise Unsupported(f"{file.path} holds the architecture {family!r}; readable are {', '.join(FAMILIES)}")

    def fact(key: str, default: Any = None) -> Any:
        return file.facts.get(f"{family}.{key}", default)

    scaling = fact("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.tensors or scaling not in ("none", "linear"):
        raise Unsupported(f"{file.path} scales its rotary frequencies in a way that is not read; use its Hugging Face folder")
    embed, heads = file.tensors.get("token_embd.weight"), fact("attention.head_count")
    raw = {
        "model_type": family,
        "vocab_size": embed.shape[0] if embed else None,
        "hidden_size": fact("embedding_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": fact("attention.key_length") or _over(fact("embedding_length"), heads),
        "intermediate_size": fact("feed_forward_length"),
        "max_position_embeddings": fact("context_length"),
        "sliding_window": fact("attention.sliding_window"),
        "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"),
        "rope_theta": fact("rope.freq_base", 10000.0),
        "rope_scaling": {"rope_type": "linear", "factor": fact("rope.scaling.factor")} if scaling == "linear" else None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "bos_token_id": file.facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [i for key in ("eos", "eot") if (i := file.facts.get(f"tokenizer.ggml.{key}_token_id")) is not None],
    }
    return from_hf(raw, file.path)


def _over(width: Any, heads: Any) -> Any:
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None


def load_gguf(path: Path, dtype: torch.dtype | None = None) -> Transformer:
    """The model of a GGUF file on the CPU: quantised matrices in their own bits (Q5_1 and Q5_K in eight), or all of them widened
    to `dtype`; without a C compiler they are widened to float32.

    Raises ValueError, naming the tensor, when the file does not hold exactly the model that its facts describe.
    """
    file = Gguf(path)
    config = config_of(file)
    if f"blk.{config.layers - 1}.attn_norm.weight" not in file.tensors:
        raise ValueError(f"{path} announces {config.layers} layers and holds fewer; {AGAIN}")
    room = path.stat().st_size * (1 if dtype is None else 8) + 12 * config.context * config.head_dim
    refuse_bytes(str(path), room, "cpu")
    with torch.device("meta"):
        model = Transformer(config)
    model.rope = Rope(config)
    dtype = torch.float32 if dtype is None and library() is None else dtype
    filler = _Filler(file, config, dtype)
    used = {name for module, names in _modules(model) for name in filler.fill(model, module, names)}
    extra = sorted(file.tensors.keys() - used - set(UNREAD))
    if extra:
        raise ValueError(f"{path}: its facts describe a model without the tensor {extra[0]!r} ({len(extra)} such); {AGAIN}")
    return model.eval()


def _modules(model: Transformer) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our modules that own a weight, and what the file calls the parts of each."""
    for name, module in list(model.named_modules()):
        if isinstance(getattr(module, "weight", None), Tensor):
            _, _, inner = name.partition(".")
            index, _, leaf = inner.partition(".")
            yield name, ENDS[name] if name in ENDS else tuple(f"blk.{index}.{part}" for part in LAYER[leaf])


class _Filler:
    """Puts a file's tensors into an empty model."""

    def __init__(self, file: Gguf, config: ModelConfig, dtype: torch.dtype | None) -> None:
        self.file, self.config, self.dtype, self.shelf = file, config, dtype, Shelf()
        self.paired = file.facts["general.architecture"] in ("llama", "mistral")

    def fill(self, model: Transformer, name: str, parts: tuple[str, ...]) -> list[str]:
        """Give a module its weight and bias; the tensors that were used."""
        module = model.get_submodule(name)
        empty = cast(Tensor, module.weight)
        counts = row_counts(name, empty.shape[0], self.config)
        weights = {f"{part}.weight": (count, *empty.shape[1:]) for part, count in zip(parts, counts, strict=True)}
        biases = {f"{part}.bias": (count,) for part, count in zip(parts, counts, strict=True)}
        biases = biases if getattr(module, "bias", None) is not None else {}
        bias = torch.cat([self._wide(*fact) for fact in biases.items()]) if biases else None
        kinds = {self._entry(*fact).type for fact in weights.items()}
        if self.dtype is None and kinds <= set(TYPES):
            packed = [self._packed(*fact) for fact in weights.items()]
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PackedEmbedding(packed[0]) if name == "embed" else PackedLinear(packed, bias))
        else:
            module.weight = nn.Parameter(torch.cat([self._wide(*fact) for fact in weights.items()]), False)
            if bias is not None:
                module.bias = nn.Parameter(bias, False)
        return [*weights, *biases]

    def _entry(self, name: str, shape: tuple[int, ...]) -> Entry:
        found = self.file.tensors.get(name)
        if found is None:
            raise ValueError(f"{self.file.path} has no tensor {name!r}, which its facts ask for; {AGAIN}")
        if found.shape != shape:
            raise ValueError(f"{self.file.path}: tensor {name!r} is {found.shape}, its facts ask for {shape}; {AGAIN}")
        return found

    def _rows(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor's raw rows in our order: Llama's queries and keys lie in pairs (llama.cpp's permutation)."""
        self._entry(name, shape)
        rows = self.file.rows(name)
        if not self.paired or not name.endswith(("attn_q.weight", "attn_k.weight")):
            return rows
        pairs = rows.reshape(-1, self.config.head_dim // 2, 2, rows.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    def _packed(self, name: str, shape: tuple[int, ...]) -> Packed:
        return repacked(self._rows(name, shape), self.file.tensors[name].type, shape[1], self.shelf)

    def _wide(self, name: str, shape: tuple[int, ...]) -> Tensor:
        rows = widened(self._rows(name, shape), self.file.tensors[name].type)
        return rows.view(shape).to(self.dtype or torch.float32, copy=True)

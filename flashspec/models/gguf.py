"""GGUF files: metadata and tensors of one model in one file, checked before use, and a transformer filled from them.

The format is ggml's (versions 2 and 3). The `gguf` library would take seconds for a vocabulary's strings.
"""

from __future__ import annotations

import mmap
import struct
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flashspec.kernels.build import call, library
from flashspec.kernels.integers import BITS, Packed, Shelf, room
from flashspec.models.config import ModelConfig, Part, Unsupported, divisors, from_hf, parts
from flashspec.models.memory import dtype_named, refuse_bytes
from flashspec.models.packed import PackedEmbedding, PackedLinear

MAGIC, VERSIONS = b"GGUF", (2, 3)
AGAIN = "the file is damaged, or not a GGUF file: fetch it again"
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY, LENGTH = 8, 9, struct.Struct("<Q")
MOST, ALIGNMENTS = 65_536, [1 << n for n in range(21)]
# ggml's number of a type: its name, the columns of a block and the block's bytes
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
FAMILIES, PAIRED = ("llama", "qwen2", "qwen3", "mistral"), ("llama", "mistral")
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
FACTS = {  # of a config.json, and what a GGUF file calls them behind its architecture's name
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
# ggml's number of a type that the kernels repack, and what becomes of it: its own codes, or eight bits for Q5_1 and Q5_K
KINDS = {
    "Q4_0": (2, "u4"), "Q4_1": (3, "u4"), "Q5_0": (6, "s6"), "Q5_1": (7, "s8"), "Q8_0": (8, "s8"), "Q4_K": (12, "u4"),
    "Q5_K": (13, "s8"), "Q6_K": (14, "s6"),
}  # fmt: skip
STOPS = ("eos", "eot", "eom")  # the ids that end a text, a turn or a message
STOP_IDS = [f"tokenizer.ggml.{name}_token_id" for name in STOPS]
DIVISORS, ODD_ROPE = "rope_freqs.weight", "scales its rotary frequencies in a way that is not read; use its Hugging Face folder"
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Entry(NamedTuple):
    """A tensor in the file: type, shape [rows, columns] or [columns], and first byte."""

    type: str
    shape: tuple[int, ...]
    start: int
    row_bytes: int


_cached = lru_cache(maxsize=4)(lambda path, size, changed: Gguf(path))


def opened(path: Path) -> Gguf:
    """A file's facts and tensors, cached until the file changes."""
    about = path.stat()
    return _cached(path, about.st_size, about.st_mtime_ns)


class Gguf:
    """An open file's `facts` by key and `tensors` by name.

    Raises ValueError for a file that is cut, damaged, or of an unknown kind.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 4
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ValueError(f"{path} does not begin with the letters GGUF; {AGAIN}")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        version = self._whole(4)
        if version not in VERSIONS:
            raise ValueError(f"{path} is GGUF of version {version}, readable are 2 and 3; convert it with a current llama.cpp")
        tensors, facts = self._whole(8), self._whole(8)
        if max(tensors, facts) > MOST:
            raise ValueError(f"{path} announces {tensors} tensors and {facts} facts, a model has fewer than {MOST}; {AGAIN}")
        self.facts: dict[str, Any] = {}
        for _ in range(facts):
            key = self._string()
            if key in self.facts:
                raise ValueError(f"{path} gives {key[:40]!r} twice; {AGAIN}")
            kind = self._whole(4)
            self.facts[key] = self._list(self._whole(4), self._whole(8)) if kind == ARRAY else self._list(kind, 1)[0]
        self.tensors = self._tensors(tensors)

    def rows(self, name: str) -> np.ndarray:
        """A tensor's bytes [rows, bytes per row], in place in the file."""
        entry = self.tensors[name]
        rows = prod(entry.shape[:-1])
        return np.frombuffer(self._bytes, np.uint8, rows * entry.row_bytes, entry.start).reshape(rows, entry.row_bytes)

    def _take(self, size: int) -> int:
        at = self._at
        if size > len(self._bytes) - at:
            raise ValueError(f"{self.path} ends at byte {len(self._bytes)} inside what it announces; {AGAIN}")
        self._at = at + size
        return at

    def _whole(self, size: int) -> int:
        at = self._take(size)
        return int.from_bytes(self._bytes[at : at + size], "little")

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        data, end, found = self._bytes, self._at, list[str]()
        try:
            for _ in range(count):  # of hundreds of thousands: nothing is called for one that need not be
                start = end + LENGTH.size
                end = start + LENGTH.unpack_from(data, end)[0]
                if end > len(data):
                    break
                found.append(data[start:end].decode())
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} holds text that is not UTF-8 at byte {start}; {AGAIN}") from None
        except struct.error:  # a length that is cut
            end = start
        self._take(end - self._at)
        return found

    def _list(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return self._strings(count)
        if kind not in NUMBERS:
            raise ValueError(f"{self.path} holds facts of the type {kind}, which is not read; {AGAIN}")
        form = np.dtype(NUMBERS[kind])
        at = self._take(form.itemsize * count)
        return list(np.frombuffer(self._bytes, form, count, at).tolist())

    def _tensors(self, count: int) -> dict[str, Entry]:
        told = {}
        for _ in range(count):
            name, dimensions = self._string(), self._whole(4)
            if not 1 <= dimensions <= 4 or name in told:  # ggml's most; a mixture of experts has three
                raise ValueError(f"{self.path} gives tensor {name[:40]!r} {dimensions} dimensions, or gives it twice; {AGAIN}")
            told[name] = [self._whole(8) for _ in range(dimensions)], self._whole(4), self._whole(8)
        step = self.facts.get("general.alignment", 32)
        if step not in ALIGNMENTS:
            raise ValueError(f"{self.path} aligns its tensors at {step!r}, expected a power of two; {AGAIN}")
        start = -(-self._at // step) * step
        found = {}
        for name, (sizes, number, offset) in told.items():
            if number not in TYPES:
                known = ", ".join(kind for kind, *_ in TYPES.values())
                raise ValueError(f"{self.path}: tensor {name[:40]!r} has ggml's type {number}; readable are {known}")
            kind, columns, size = TYPES[number]
            if not all(sizes) or sizes[0] % columns:
                raise ValueError(f"{self.path}: tensor {name[:40]!r} has the shape {sizes}, which no {kind} matrix has; {AGAIN}")
            found[name] = Entry(kind, tuple(reversed(sizes)), start + offset, sizes[0] // columns * size)
            if start + offset + found[name].row_bytes * prod(sizes[1:]) > len(self._bytes):
                raise ValueError(f"{self.path}: tensor {name[:40]!r} lies behind the end of the file; {AGAIN}")
        return found


def config_of(file: Gguf) -> ModelConfig:
    """The model's shape; ValueError for a missing or wrong fact, Unsupported for what we do not compute."""
    family = file.facts.get("general.architecture")
    if family not in FAMILIES:
        raise Unsupported(f"{file.path} holds the architecture {family!r}; readable are {', '.join(FAMILIES)}")

    kind = file.facts.get(f"{family}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise Unsupported(f"{file.path} {ODD_ROPE}")
    scaling = {"rope_type": kind, "factor": file.facts.get(f"{family}.rope.scaling.factor")} if kind == "linear" else None
    if entry := file.tensors.get(DIVISORS):  # Llama 3's scaling, in which published models differ by one number
        factors = widened(file.rows(DIVISORS), entry.type).view(-1)
        scaling = LLAMA3 | {"factor": float(factors.max())}
    embed = file.tensors.get("token_embd.weight")
    raw = {
        "model_type": family,
        "vocab_size": embed.shape[0] if embed else None,
        **{name: file.facts.get(f"{family}.{key}") for name, key in FACTS.items()},
        "rope_scaling": scaling,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "bos_token_id": file.facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [file.facts[key] for key in STOP_IDS if key in file.facts],
    }
    config = from_hf(raw, file.path)
    if entry and not (len(factors) == config.head_dim // 2 and torch.allclose(factors, divisors(config), rtol=1e-3)):
        raise Unsupported(f"{file.path} {ODD_ROPE}")
    return config


def tensor_name(source: str, leaf: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    if source in NAMES:
        return f"{NAMES[source]}.{leaf}"
    index, _, name = source.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{NAMES[name]}.{leaf}"


class GgufCheckpoint:
    """The config and tensors of a GGUF file, and the form that its weights take on the CPU.

    `dtype` "auto" keeps quantised matrices in their own bits (without a C compiler: float32); another dtype, or `weights`
    "dense", widens all of them. Of a file that lends its embedding, only `layers` layers must fit the memory. ValueError
    unless the file holds exactly the model that its facts describe.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, dtype: str = "auto", weights: str = "auto", layers: int | None = None) -> None:
        self.file, self.shelf = opened(path), Shelf()
        self.config = config_of(self.file)
        if weights not in ("auto", "dense"):
            raise ValueError(f"{path}: weights of a GGUF file are 'auto', its own bits, or 'dense', got {weights!r}")
        self.own_bits = dtype == "auto" and weights != "dense" and library() is not None
        self.dtype = torch.float32 if dtype == "auto" else dtype_named(dtype)
        beyond = tuple(f"blk.{index}." for index in range(layers or self.config.layers, self.config.layers))
        needed = sum(self._bytes(entry) for name, entry in self.file.tensors.items() if not name.startswith(beyond))
        refuse_bytes(str(path), needed + 12 * self.config.context * self.config.head_dim, self.device)
        extra = self.file.tensors.keys() - {DIVISORS}
        for _, part in parts(self.config):
            for source, rows in part.rows.items():
                for leaf in part.leaves:
                    name, shape = tensor_name(source, leaf), (rows, *part.shape(leaf)[1:])
                    found = self.file.tensors.get(name)
                    if found is None or found.shape != shape:
                        held = found.shape if found else "missing"
                        raise ValueError(f"{path}: tensor {name!r} is {held}, its facts ask for {shape}; {AGAIN}")
                    extra.discard(name)
        if extra:
            raise ValueError(f"{path}: its facts describe a model without the tensor {min(extra)!r} ({len(extra)} such); {AGAIN}")

    def _bytes(self, entry: Entry) -> int:
        bits = BITS[KINDS[entry.type][1]] + 1 if self.own_bits and entry.type in KINDS else 8 * self.dtype.itemsize
        return prod(entry.shape) * bits // 8  # a panel's scales are a bit for each weight

    def module(self, name: str, part: Part) -> nn.Module | dict[str, Tensor]:
        """The weights of one of our modules; raw bytes are read in place from the file."""
        weights = [tensor_name(source, "weight") for source in part.rows]
        if not self.own_bits or any(self.file.tensors[weight].type not in KINDS for weight in weights):
            return {leaf: self._wide(part, leaf) for leaf in part.leaves}
        packed = [self._packed(weight) for weight in weights]
        bias = self._wide(part, "bias") if part.bias else None
        return PackedEmbedding(packed) if name == "embed" else PackedLinear(packed, bias)

    def _rows(self, name: str) -> np.ndarray:
        """A tensor's raw rows in our order: the file has Llama's queries and keys in llama.cpp's order."""
        rows = self.file.rows(name)
        if self.config.family not in PAIRED or name.split(".")[-2] not in ("attn_q", "attn_k"):
            return rows
        pairs = rows.reshape(-1, self.config.head_dim // 2, 2, rows.size // self.file.tensors[name].shape[0])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    def _packed(self, name: str) -> Packed:
        (rows, depth), (number, kind) = self.file.tensors[name].shape, KINDS[self.file.tensors[name].type]
        cells = room(rows, depth, kind, self.shelf)
        raw = self._rows(name)  # alive until the call has ended
        call("fs_repack", raw.ctypes.data, number, rows, depth, cells)
        return Packed(cells, kind, rows, depth)

    def _wide(self, part: Part, leaf: str) -> Tensor:
        made = self.shelf.zeros(part.shape(leaf), self.dtype)
        for source, rows in part.split(made).items():
            name = tensor_name(source, leaf)
            rows.copy_(widened(self._rows(name), self.file.tensors[name].type).view(rows.shape))
        return made


def widened(raw: np.ndarray, kind: str) -> Tensor:
    """Rows [N, bytes] of one of ggml's types in float32; quantised ones by the gguf library."""
    if kind in PLAIN:
        return torch.from_numpy(np.array(raw)).view(PLAIN[kind]).float()
    try:
        from gguf import GGMLQuantizationType, quants
    except ModuleNotFoundError:
        raise ModuleNotFoundError('quantised GGUF tensors are widened by the gguf library: pip install -e ".[gguf]"') from None
    return torch.from_numpy(np.array(quants.dequantize(raw, GGMLQuantizationType[kind])))

"""The shape of a transformer: its config.json, its tensors by Hugging Face's names, and its rotary angles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec import structs
from torch import Tensor

from flashspec.models.files import FIXED_OPT, NOT_READ, OPT_NAMES, Kind, Shape, Unsupported, ids_of, shape_of, shaped
from flashspec.typed import at_least

FAMILIES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "opt": "OPTForCausalLM",
}
FLASH_HEAD = {"architectures": "FlashHead", "model_type": "flash_head_"}  # in public checkpoints
CONFIG = Path("config.json")
SCALED = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
UP = ("mlp.gate_proj", "mlp.up_proj")
LLAMA_LAYER = ("input_layernorm", "self_attn.o_proj", "post_attention_layernorm", UP, "mlp.down_proj")
OPT_LAYER = ("self_attn_layer_norm", "self_attn.out_proj", "final_layer_norm", ("fc1",), "fc2")
OFFSET = 2  # rows of OPT's table of positions that stand before the first (Zhang et al. 2022)


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequency scaling; `kind` is "default", "linear" or "llama3" (Llama 3.1 report, section 3.2)."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in SCALED:
            raise Unsupported(f"rope scaling {self.kind!r} is not supported; supported: {', '.join(SCALED)}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if not 0 < low < high:
            raise ValueError(f"rope scaling needs 0 < low_freq_factor < high_freq_factor, got {low} and {high}")


class Part(NamedTuple):
    """One of our modules: Hugging Face's, whose rows make up its weight, its columns (0: a vector), its bias."""

    rows: dict[str, int]
    columns: int = 0
    bias: bool = False

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return ("weight", "bias") if self.bias else ("weight",)

    def shape(self, leaf: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        rows = sum(self.rows.values())
        return (rows, self.columns) if self.columns and leaf == "weight" else (rows,)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """The rows of one of our tensors, by the Hugging Face module that they come from."""
        return dict(zip(self.rows, tensor.split(list(self.rows.values())), strict=True))


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder-only transformer; `context` is in tokens.

    The rest follows from the family: Qwen3 normalises queries and keys, Qwen2 has biases on them and on its values, OPT adds
    learned positions, normalises with mean and bias and has an ungated ReLU MLP.
    """

    family: str
    vocab_size: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope: RopeScaling = RopeScaling()
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise Unsupported(f"architecture {self.family!r} is not supported; supported: {', '.join(FAMILIES)}")
        at_least(self, vocab_size=1, hidden=1, ffn=1, layers=1, heads=1, kv_heads=1, head_dim=1, context=1)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if not self.opt and self.head_dim % 2:
            raise ValueError(f"rotary heads need an even width, got {self.head_dim}")

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises queries and keys per head."""
        return self.family == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value projections carry a bias."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def opt(self) -> bool:
        """OPT adds a learned vector to every embedding instead of rotating queries and keys, and its MLP has no gate."""
        return self.family == "opt"

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        kv = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, kv, kv

    @property
    def body_parameters(self) -> int:
        """Matrix weights of all layers, without embedding and head."""
        return self.layers * sum(sum(part.rows.values()) * part.columns for part in layer_parts(self, "").values())

    @property
    def head_parameters(self) -> int:
        """Weights of the vocabulary projection."""
        return self.vocab_size * self.hidden


def parts(config: ModelConfig) -> Iterator[tuple[str, Part]]:
    """All our modules that own weights, by name."""
    opt, width = config.opt, config.hidden
    stem = "model.decoder" if opt else "model"
    yield "embed", Part({f"{stem}.embed_tokens": config.vocab_size}, width)
    if opt:
        yield "positions", Part({f"{stem}.embed_positions": config.context + OFFSET}, width)
    for i in range(config.layers):
        for name, part in layer_parts(config, f"{stem}.layers.{i}.").items():
            yield f"layers.{i}.{name}", part
    yield "norm", Part({f"{stem}.final_layer_norm" if opt else f"{stem}.norm": width}, bias=opt)
    if not config.tied:
        yield "head", Part({"lm_head": config.vocab_size}, width)


def layer_parts(c: ModelConfig, stem: str) -> dict[str, Part]:
    """The modules of one layer; `stem` is the prefix of their Hugging Face names."""
    before, out, behind, up, down = OPT_LAYER if c.opt else LLAMA_LAYER
    qkv = {f"{stem}self_attn.{name}_proj": rows for name, rows in zip("qkv", c.qkv_rows, strict=True)}
    norms = {f"attention.{name}": Part({f"{stem}self_attn.{name}": c.head_dim}) for name in ("q_norm", "k_norm") if c.qk_norm}
    return {
        "attention_norm": Part({stem + before: c.hidden}, bias=c.opt),
        "attention.qkv": Part(qkv, c.hidden, c.qkv_bias),
        "attention.out": Part({stem + out: c.hidden}, c.qkv_rows[0], c.attention_bias),
        **norms,
        "mlp_norm": Part({stem + behind: c.hidden}, bias=c.opt),
        "mlp.up": Part({stem + name: c.ffn for name in up}, c.hidden, c.mlp_bias),
        "mlp.down": Part({stem + down: c.hidden}, c.ffn, c.mlp_bias),
    }


def family_of(raw: Any, path: Path = CONFIG) -> str:
    """The family of a config.json, with or without a FlashHead; Unsupported for an unknown one."""
    about = shaped(raw, Kind, path)
    name = (about.architectures or [""])[0].removeprefix(FLASH_HEAD["architectures"])
    kind = (about.model_type or "").removeprefix(FLASH_HEAD["model_type"])
    for family, architecture in FAMILIES.items():
        if (name or architecture) == architecture and (kind or family) == family and (name or kind):
            return family
    if name in FAMILIES.values():
        raise Unsupported(f"architecture {name!r} with the model_type {kind!r} is not supported; both must name one family")
    raise Unsupported(f"architecture {name or kind!r} is not supported; supported: {', '.join(FAMILIES.values())}")


def from_hf(raw: dict[str, Any], path: Path = CONFIG) -> ModelConfig:
    """Read a config.json dictionary; missing fields get transformers' defaults.

    Raises ValueError for a missing or wrong field, and its subclass Unsupported for what we do not compute.
    """
    family = family_of(raw, path)
    facts = shape_of(raw, family, path)
    given = {field.name: getattr(facts, field.name) for field in fields(ModelConfig) if hasattr(facts, field.name)}
    given |= {"kv_heads": facts.kv_heads or facts.heads, "head_dim": facts.head_dim or facts.hidden // facts.heads}
    given |= {"rope_theta": facts.rotation.rope_theta or facts.rope_theta or 10000.0, "eos": ids_of(facts.eos)}
    try:
        if family == "opt" and facts.hidden % facts.heads:
            raise ValueError(f"{facts.heads} heads cannot share a width of {facts.hidden} evenly")
        return ModelConfig(family=family, rope=_rope(facts), **given)
    except Unsupported:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}; copy the file again from its source") from None


def _rope(facts: Shape) -> RopeScaling:
    table = facts.rotation
    if unknown := set(facts.layer_types or ()) - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"layers of type {min(unknown)!r} are not supported; supported: full_attention, sliding_attention")
    kind = table.rope_type or table.type or "default"
    given: dict[str, Any] = {name: getattr(table, name) for name in SCALED.get(kind, ())}
    if lacking := [name for name, value in given.items() if value is None]:
        raise ValueError(f"rope scaling {kind!r} has no {lacking[0]}")
    if kind == "llama3":
        known = facts.original_max_position_embeddings or table.original_max_position_embeddings
        given["original_context"] = known or facts.positions
    return RopeScaling(kind, **given)


def to_hf(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The config.json dictionary that transformers reads back as the same model."""
    named = {field.encode_name: getattr(config, field.name) for field in structs.fields(Shape) if hasattr(config, field.name)}
    if config.opt:
        unread = {*NOT_READ["opt"], "mlp_bias"}
        named = {OPT_NAMES.get(name, name): value for name, value in named.items() if name not in unread}
    rope = {"rope_type": config.rope.kind, "rope_theta": config.rope_theta}
    rope |= {name: getattr(config.rope, name) for name in SCALED[config.rope.kind]}
    if config.rope.kind == "llama3":
        rope["original_max_position_embeddings"] = config.rope.original_context
    scaling = None if config.rope.kind == "default" else rope
    rotary = {"hidden_act": "silu", "rope_scaling": scaling, "rope_parameters": rope, "sliding_window": None}
    unpadded = {"word_embed_proj_dim": config.hidden, "pad_token_id": None}
    return {
        "architectures": [FAMILIES[config.family]],
        "model_type": config.family,
        **named,
        "max_position_embeddings": config.context,
        "eos_token_id": list(config.eos) if len(config.eos) != 1 else config.eos[0],
        **(FIXED_OPT | unpadded if config.opt else rotary),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Rotary radians per position, [head_dim / 2], scaled as the config says (Su et al. 2021)."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse, rope = 1.0 / config.rope_theta**steps, config.rope
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / inverse
        smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * inverse / rope.factor + smooth * inverse
    return inverse


def divisors(config: ModelConfig) -> Tensor:
    """GGUF's rope_freqs.weight for Llama 3's scaling: each frequency's divisor, [head_dim / 2]."""
    plain = replace(config, rope=RopeScaling())
    return inverse_frequencies(plain) / inverse_frequencies(config)

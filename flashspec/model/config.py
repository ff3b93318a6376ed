"""What a transformer looks like: the facts of a Hugging Face config.json that change the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FAMILIES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "opt": "OPTForCausalLM",
}
FLASH_HEAD = {"architectures": "FlashHead", "model_type": "flash_head_"}  # what public FlashHead checkpoints put before them


class Unsupported(ValueError):
    """A checkpoint that our own transformer does not compute, though transformers may."""


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequency scaling; `kind` is "default", "linear" or "llama3" (Llama 3.1 report, section 3.2)."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "llama3"):
            raise Unsupported(f"rope scaling {self.kind!r} is not supported; supported: default, linear, llama3")
        if self.factor <= 0:
            raise ValueError(f"rope scaling factor must be above 0, got {self.factor}")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder-only transformer. Counts are whole numbers; `context` is in tokens.

    The family settles the rest: Qwen3 normalises queries and keys, Qwen2 biases its queries, keys and values, OPT adds
    learned positions, normalises with mean and bias and has an ungated ReLU MLP; `attention_bias` and `mlp_bias` are the
    options of the other families.
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
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises queries and keys per head."""
        return self.family == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value projections carry a bias."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def learned_positions(self) -> bool:
        """OPT adds a learned vector to every embedding instead of rotating queries and keys."""
        return self.family == "opt"

    @property
    def layer_norm(self) -> bool:
        """OPT's norms subtract the mean and add a bias."""
        return self.family == "opt"

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies by a SiLU gate; OPT's does not."""
        return self.family != "opt"

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        kv = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, kv, kv

    @property
    def layer_parameters(self) -> int:
        """Matrix weights of one layer."""
        query, key, value = self.qkv_rows
        return self.hidden * (2 * query + key + value + (3 if self.gated else 2) * self.ffn)

    @property
    def body_parameters(self) -> int:
        """Matrix weights of all layers, without embedding and head."""
        return self.layers * self.layer_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of the vocabulary projection."""
        return self.vocab_size * self.hidden

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes the key/value cache grows by for each token read."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


def family_of(raw: dict[str, Any]) -> str:
    """The architecture family of a config.json, with or without a FlashHead, or a refusal that names it."""
    name = (raw.get("architectures") or [""])[0].removeprefix(FLASH_HEAD["architectures"])
    kind = str(raw.get("model_type")).removeprefix(FLASH_HEAD["model_type"])
    for family, architecture in FAMILIES.items():
        if name == architecture or (not name and kind == family):
            return family
    known = ", ".join(FAMILIES.values())
    raise Unsupported(f"architecture {name or kind!r} is not supported; supported: {known}")


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling]:
    """Rope theta and scaling; transformers 5 nests both in rope_parameters, older files keep them flat."""
    table = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(table.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = table.get("rope_type", table.get("type", "default"))
    if table.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise Unsupported("rotating only a part of each head is not supported; use a checkpoint without partial_rotary_factor")
    scaling = RopeScaling(
        kind=kind,
        factor=float(table.get("factor", 1.0)),
        low_freq_factor=float(table.get("low_freq_factor", 1.0)),
        high_freq_factor=float(table.get("high_freq_factor", 4.0)),
        original_context=int(table.get("original_max_position_embeddings", 8192)),
    )
    return theta, scaling


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _context(raw: dict[str, Any], family: str) -> int:
    """Positions the model has; with a sliding window no more than the window, inside which it is full attention."""
    context = raw.get("max_position_embeddings", 2048)
    slides = raw.get("use_sliding_window", family in ("mistral", "llama")) and raw.get("sliding_window")
    if "layer_types" in raw and "sliding_attention" not in (raw["layer_types"] or ["sliding_attention"]):
        return context
    return min(context, raw["sliding_window"]) if slides else context


def from_hf(raw: dict[str, Any]) -> ModelConfig:
    """Read a config.json dictionary. Raises Unsupported, a ValueError, for an architecture or option that we do not compute.

    A sliding window becomes the context: up to it, sliding attention is full attention.
    """
    family = family_of(raw)
    if family == "opt":
        return _opt_from_hf(raw)
    act = raw.get("hidden_act", "silu")
    if act != "silu":
        raise Unsupported(f"activation {act!r} is not supported for {family}; supported: silu")
    theta, scaling = _rope(raw)
    heads, optional = raw["num_attention_heads"], family in ("qwen3", "llama")
    return ModelConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        hidden=raw["hidden_size"],
        ffn=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        context=_context(raw, family),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope=scaling,
        tied=raw.get("tie_word_embeddings", False),
        attention_bias=optional and raw.get("attention_bias", False),
        mlp_bias=family == "llama" and raw.get("mlp_bias", False),
        bos=raw.get("bos_token_id"),
        eos=_ids(raw.get("eos_token_id")),
    )


OPT_ONLY = {
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "layer_norm_elementwise_affine": True,
}


def _opt_from_hf(raw: dict[str, Any]) -> ModelConfig:
    """OPT's config.json (Zhang et al. 2022); its norm adds 1e-5 to the variance."""
    hidden, heads, bias = raw["hidden_size"], raw["num_attention_heads"], raw.get("enable_bias", True)
    wanted = {**OPT_ONLY, "word_embed_proj_dim": hidden}
    for key, value in wanted.items():
        found = raw.get(key, value)
        if found is not None and found != value:
            raise Unsupported(f"OPT with {key} = {found!r} is not supported; supported: {key} = {value!r}")
    return ModelConfig(
        family="opt",
        vocab_size=raw["vocab_size"],
        hidden=hidden,
        ffn=raw["ffn_dim"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        context=raw.get("max_position_embeddings", 2048),
        norm_eps=1e-5,
        tied=raw.get("tie_word_embeddings", True),
        attention_bias=bias,
        mlp_bias=bias,
        bos=raw.get("bos_token_id"),
        eos=_ids(raw.get("eos_token_id")),
    )


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    table: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope_theta}
    if config.rope.kind != "default":
        table["factor"] = config.rope.factor
    if config.rope.kind == "llama3":
        table["low_freq_factor"] = config.rope.low_freq_factor
        table["high_freq_factor"] = config.rope.high_freq_factor
        table["original_max_position_embeddings"] = config.rope.original_context
    return table


def to_hf(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The config.json dictionary that transformers reads back as the same model."""
    return {
        "architectures": [FAMILIES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        **(_opt_to_hf(config) if config.family == "opt" else _rotary_to_hf(config)),
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos) if len(config.eos) != 1 else config.eos[0],
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _rotary_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of Llama and the families that grew out of it."""
    rope = _rope_to_hf(config)
    return {
        "intermediate_size": config.ffn,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": rope,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": None,
    }


def _opt_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of OPT, whose query, key and value widths are the hidden one."""
    return {
        **OPT_ONLY,
        "ffn_dim": config.ffn,
        "word_embed_proj_dim": config.hidden,
        "enable_bias": config.attention_bias,
        "pad_token_id": None,
    }

"""What a transformer looks like: the facts of a Hugging Face config.json that change the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flashspec.models.files import SHAPES, Kind, Llama, Opt, ids_of, shaped

FAMILIES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "opt": "OPTForCausalLM",
}
FLASH_HEAD = {"architectures": "FlashHead", "model_type": "flash_head_"}  # what public FlashHead checkpoints put before them
CONFIG = Path("config.json")
SCALED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}


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
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            low, high = self.low_freq_factor, self.high_freq_factor
            raise ValueError(f"rope scaling needs 0 < low_freq_factor < high_freq_factor, got {low} and {high}")


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
        for name in ("vocab_size", "hidden", "ffn", "layers", "heads", "kv_heads", "head_dim", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.family != "opt" and self.head_dim % 2:
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


def family_of(raw: Any, path: Path = CONFIG) -> str:
    """The architecture family of a config.json, with or without a FlashHead, or a refusal that names it."""
    about = shaped(raw, Kind, path)
    name = (about.architectures or [""])[0].removeprefix(FLASH_HEAD["architectures"])
    kind = (about.model_type or "").removeprefix(FLASH_HEAD["model_type"])
    for family, architecture in FAMILIES.items():
        if (name or architecture) == architecture and (kind or family) == family and (name or kind):
            return family
    if name in FAMILIES.values():
        raise Unsupported(f"architecture {name!r} with the model_type {kind!r} is not supported; both must name one family")
    raise Unsupported(f"architecture {name or kind!r} is not supported; supported: {', '.join(FAMILIES.values())}")


def _rope(facts: Llama) -> tuple[float, RopeScaling]:
    """Rope theta and scaling."""
    table = facts.rotation
    kind, theta = table.rope_type or table.type or "default", table.rope_theta or facts.rope_theta or 10000.0
    if {table.partial_rotary_factor, facts.partial_rotary_factor} - {None, 1.0}:
        raise Unsupported("rotating only a part of each head is not supported; use a checkpoint without partial_rotary_factor")
    if unknown := set(facts.layer_types or ()) - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"layers of type {min(unknown)!r} are not supported; supported: full_attention, sliding_attention")
    if table.full_attention or table.sliding_attention:
        raise Unsupported("rotating layers differently is not supported; use a checkpoint with one rope_type for all")
    lacking = [name for name in SCALED.get(kind, ()) if getattr(table, name) is None]
    if lacking:
        raise ValueError(f"rope scaling {kind!r} has no {lacking[0]}")
    if kind != "llama3":
        return theta, RopeScaling(kind, table.factor or 1.0) if kind != "default" else RopeScaling()
    factor, low, high = (getattr(table, name) for name in SCALED[kind])
    known = facts.original_max_position_embeddings or table.original_max_position_embeddings
    return theta, RopeScaling(kind, factor, low, high, known or facts.max_position_embeddings)


def from_hf(raw: dict[str, Any], path: Path = CONFIG) -> ModelConfig:
    """Read a config.json dictionary; what it leaves out is what transformers takes.

    Raises ValueError for a field that is missing or wrong, and Unsupported, which is one, for what we do not compute.
    """
    family = family_of(raw, path)
    facts = shaped(raw, SHAPES[family], path)
    if facts.is_causal is False:
        raise Unsupported(f"{path}: attention that looks ahead (is_causal = False) is not supported")
    try:
        return ModelConfig(
            family=family,
            vocab_size=facts.vocab_size,
            hidden=facts.hidden_size,
            layers=facts.num_hidden_layers,
            heads=facts.num_attention_heads,
            tied=facts.tie_word_embeddings,
            bos=facts.bos_token_id,
            eos=ids_of(facts.eos_token_id),
            **(_opt(facts) if isinstance(facts, Opt) else _rotary(cast(Llama, facts), family)),
        )
    except Unsupported:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}; copy the file again from its source") from None


def _rotary(facts: Llama, family: str) -> dict[str, Any]:
    """What Llama and the families that grew out of it say beside the shape."""
    if facts.hidden_act != "silu":
        raise Unsupported(f"activation {facts.hidden_act!r} is not supported for {family}; supported: silu")
    theta, scaling = _rope(facts)
    return {
        "ffn": facts.intermediate_size,
        "kv_heads": facts.num_key_value_heads or facts.num_attention_heads,
        "head_dim": facts.head_dim or facts.hidden_size // facts.num_attention_heads,
        "context": facts.context,
        "norm_eps": facts.rms_norm_eps,
        "rope_theta": theta,
        "rope": scaling,
        "attention_bias": family in ("qwen3", "llama") and facts.attention_bias,
        "mlp_bias": family == "llama" and facts.mlp_bias,
    }


OPT_ONLY = {
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "layer_norm_elementwise_affine": True,
}


def _opt(facts: Opt) -> dict[str, Any]:
    """What OPT says beside the shape (Zhang et al. 2022); its norm adds 1e-5 to the variance."""
    for key, value in {**OPT_ONLY, "word_embed_proj_dim": facts.hidden_size}.items():
        found = getattr(facts, key)
        if found is not None and found != value:
            raise Unsupported(f"OPT with {key} = {found!r} is not supported; supported: {key} = {value!r}")
    if facts.hidden_size % facts.num_attention_heads:
        raise ValueError(f"{facts.num_attention_heads} heads cannot share a width of {facts.hidden_size} evenly")
    return {
        "ffn": facts.ffn_dim,
        "kv_heads": facts.num_attention_heads,
        "head_dim": facts.hidden_size // facts.num_attention_heads,
        "context": facts.max_position_embeddings,
        "norm_eps": 1e-5,
        "attention_bias": facts.enable_bias,
        "mlp_bias": facts.enable_bias,
    }


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

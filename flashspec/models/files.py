"""The JSON files of a checkpoint as types: a wrong value is refused by the name of its field.

Missing fields get transformers' defaults for the family; fields that change no number here are not read.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

Count = Annotated[int, Meta(ge=1, lt=2**31)]
Id = Annotated[int, Meta(ge=0, lt=2**31)]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
Ids = Id | list[Id] | None
Digests = dict[str, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]]

T = TypeVar("T")
AGAIN = "copy the file again from its source"


def shaped(raw: Any, kind: type[T], path: Path, advice: str = AGAIN) -> T:
    """`raw`, read from `path`, as a value of this type; ValueError names the wrong field."""
    try:
        return msgspec.convert(raw, kind, str_keys=True)
    except UnicodeEncodeError:
        raise ValueError(f"{path} holds half of a character (a lone surrogate), which no text does; {advice}") from None
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
    place, said = place.strip(".`"), said.replace("`", "")
    if said.startswith("Object missing required field "):
        raise ValueError(f"{path} has no {place + '.' if place else ''}{said.split()[-1]}; {advice}")
    if said.startswith("Expected"):
        for step in re.findall(r"\w+", place):  # such as a.b[3]
            raw = raw[int(step)] if isinstance(raw, list) else raw[step]
        said = f"{place or 'the whole file'} holds {reprlib.repr(raw)}, expected{said.split(', got')[0][8:]}"
    raise ValueError(f"{path}: {said}; {advice}")


def ids_of(value: int | list[int] | None) -> tuple[int, ...]:
    """One id, several or none, as a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


class Unsupported(ValueError):
    """A checkpoint that our own transformer cannot compute, though transformers may."""


class Method(Struct):
    """The quantisation named in a config.json."""

    quant_method: str | None = None
    load_in_8bit: bool | None = None
    load_in_4bit: bool | None = None


class Kind(Struct):
    """The fields of a config.json that every architecture has."""

    architectures: list[str] | None = None
    model_type: str | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    tie_word_embeddings: bool | None = None
    quantization_config: Method | None = None


class Rotation(Struct):
    """rope_scaling of older config.json files, and rope_parameters of newer ones."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Count | None = None


class Shape(Struct, kw_only=True):
    """The fields of a config.json that a model is computed from, under our names; OPT's go by Llama's."""

    vocab_size: Count
    hidden: Count = field(name="hidden_size")
    layers: Count = field(name="num_hidden_layers")
    heads: Count = field(name="num_attention_heads")
    ffn: Count = field(name="intermediate_size")
    kv_heads: Count | None = field(name="num_key_value_heads", default=None)
    head_dim: Count | None = None
    positions: Count = field(name="max_position_embeddings", default=2048)
    norm_eps: Annotated[float, Meta(ge=0, le=1e30)] = field(name="rms_norm_eps", default=1e-6)
    rope_theta: Positive | None = None
    rope_scaling: Rotation | None = None
    rope_parameters: Rotation | None = None
    original_max_position_embeddings: Count | None = None
    use_sliding_window: bool = True
    sliding_window: Id | None = None
    max_window_layers: Id = 0
    layer_types: list[str] | None = None
    tied: bool = field(name="tie_word_embeddings", default=False)
    attention_bias: bool = False
    mlp_bias: bool = False
    bos: Id | None = field(name="bos_token_id", default=None)
    eos: Ids = field(name="eos_token_id", default=None)

    @property
    def rotation(self) -> Rotation:
        """How heads are rotated; older files have rope_scaling, and keep theta outside."""
        return next((table for table in (self.rope_scaling, self.rope_parameters) if table not in (None, Rotation())), Rotation())

    @property
    def context(self) -> int:
        """Tokens in all, or those of a sliding window, inside which attention is full."""
        named = "sliding_attention" in self.layer_types if self.layer_types else self.max_window_layers < self.layers
        window = self.sliding_window if self.use_sliding_window and named else None
        return self.positions if window is None else min(self.positions, window)


OPT_NAMES = {"intermediate_size": "ffn_dim", "attention_bias": "enable_bias"}  # Llama's, and what a config.json of OPT has
# What transformers takes for a missing field, by family
QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28}  # fmt: skip
LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096, "bos_token_id": 1,
                "eos_token_id": 2},
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": 128},
    "opt": {"ffn_dim": 3072, "enable_bias": True, "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 2},
}  # fmt: skip
# Fields that a family does not read, and what they amount to; OPT's norm adds 1e-5 to the variance
ROTATED = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "num_key_value_heads", "head_dim")
UNBIASED = {"attention_bias": False, "mlp_bias": False}
NOT_READ: dict[str, dict[str, Any]] = {
    "mistral": UNBIASED | {"layer_types": None, "use_sliding_window": True, "max_window_layers": 0},
    "qwen2": UNBIASED,
    "qwen3": {"mlp_bias": False},
    "opt": dict.fromkeys(ROTATED) | {"rms_norm_eps": 1e-5},
}
# Fields of which one value is computed; in a table of rotations those that such tables may hold too
FIXED = {"is_causal": True, "hidden_act": "silu", "partial_rotary_factor": 1.0}
FIXED_ROTATION = {"partial_rotary_factor": 1.0, "full_attention": None, "sliding_attention": None}
FIXED_OPT = {"is_causal": True, "activation_function": "relu", "do_layer_norm_before": True, "_remove_final_layer_norm": False,
             "layer_norm_elementwise_affine": True}  # fmt: skip


def refuse_others(facts: dict[str, Any], fixed: dict[str, Any], path: Path) -> None:
    """Unsupported where a field holds anything but the one value that we compute."""
    for name, value in fixed.items():
        found = facts.get(name)
        if found not in (None, value):
            raise Unsupported(f"{path}: {name} = {reprlib.repr(found)} is not supported; supported: {name} = {value!r}")


def shape_of(raw: dict[str, Any], family: str, path: Path) -> Shape:
    """A config.json as transformers reads it: with a family's defaults, and without fields it ignores."""
    whole = LEFT_OUT[family] | raw | NOT_READ.get(family, {})
    if family == "opt":
        whole |= {ours: whole[theirs] for ours, theirs in OPT_NAMES.items()} | {"mlp_bias": whole["enable_bias"]}
    facts = shaped(whole, Shape, path)
    refuse_others(whole, FIXED_OPT | {"word_embed_proj_dim": facts.hidden} if family == "opt" else FIXED, path)
    for table in (whole.get("rope_scaling"), whole.get("rope_parameters")):
        refuse_others(table or {}, FIXED_ROTATION, path)
    return facts


class Generation(Struct):
    """generation_config.json: stop tokens, and how its author sampled."""

    eos_token_id: Ids = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e30)] | None = None
    top_k: Id | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Number | None = None
    no_repeat_ngram_size: int | None = None
    min_p: Number | None = None
    typical_p: Number | None = None


class Text(Struct):
    """A token with its options."""

    content: str


class Template(Struct):
    """One of several chat templates."""

    name: str
    template: str


class Speech(Struct):
    """tokenizer_config.json, as far as chat templates need it: the template or several, and special tokens."""

    chat_template: str | list[Template] | dict[str, str] | None = None
    bos_token: str | Text | None = None
    eos_token: str | Text | None = None
    unk_token: str | Text | None = None
    sep_token: str | Text | None = None
    pad_token: str | Text | None = None
    cls_token: str | Text | None = None
    mask_token: str | Text | None = None

    @property
    def template(self) -> str:
        """The template of a conversation, "" without one."""
        named = self.chat_template or ""
        if isinstance(named, list):
            named = {each.name: each.template for each in named}
        return named.get("default", "") if isinstance(named, dict) else named

    @property
    def tokens(self) -> dict[str, str]:
        """The texts of the special tokens that exist."""
        given = {name: getattr(self, name) for name in self.__struct_fields__[1:]}
        return {name: token.content if isinstance(token, Text) else token for name, token in given.items() if token}


class Index(Struct):
    """model.safetensors.index.json: the file of every tensor."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


class PublicHead(Struct):
    """The options of a FlashHead in the public layout."""

    flash_head_cache_dir: str | None = None
    flash_head_special_token_ids: Ids = None
    n_probes: Count | None = None

"""The JSON files of a checkpoint as types: a wrong value is refused by the name of its field.

Missing fields get transformers' defaults for the family; fields that change no number here are not read.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

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
        said = f"{place or 'the whole file'} holds {_found(raw, place)}, expected{said.split(', got')[0][8:]}"
    raise ValueError(f"{path}: {said}; {advice}")


def _found(raw: Any, place: str) -> str:
    """The value at a place such as `a.b[3]`, shortened; an unnamed key gives all keys around it."""
    for step in re.findall(r"\w+", place):
        raw = raw[int(step)] if isinstance(raw, list) else raw[step]
    return reprlib.repr(raw)


def ids_of(value: int | list[int] | None) -> tuple[int, ...]:
    """One id, several or none, as a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


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

    FIXED: ClassVar = {"partial_rotary_factor": 1.0, "full_attention": None, "sliding_attention": None}

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    partial_rotary_factor: Number | None = None
    full_attention: Any = None
    sliding_attention: Any = None


class Shape(Struct, kw_only=True):
    """The fields that every supported family has, under our names.

    Families add `FIXED`, fields of which we compute one value, and `settled()`, the rest of what a `ModelConfig` needs.
    """

    vocab_size: Count
    hidden: Count = field(name="hidden_size")
    layers: Count = field(name="num_hidden_layers")
    heads: Count = field(name="num_attention_heads")
    positions: Count = field(name="max_position_embeddings", default=2048)
    tied: bool = field(name="tie_word_embeddings", default=False)
    is_causal: bool | None = None
    bos: Id | None = field(name="bos_token_id", default=None)
    eos: Ids = field(name="eos_token_id", default=None)


class Rotary(Shape, kw_only=True):
    """config.json of the families that grew out of Llama."""

    FIXED: ClassVar = {"hidden_act": "silu", "partial_rotary_factor": 1.0}

    ffn: Count = field(name="intermediate_size")
    kv_heads: Count | None = field(name="num_key_value_heads", default=None)
    head_dim: Count | None = None
    hidden_act: str = "silu"
    norm_eps: Annotated[float, Meta(ge=0, le=1e30)] = field(name="rms_norm_eps", default=1e-6)
    rope_theta: Positive | None = None
    rope_scaling: Rotation | None = None
    rope_parameters: Rotation | None = None
    original_max_position_embeddings: Count | None = None
    partial_rotary_factor: Number | None = None
    use_sliding_window: bool = True
    sliding_window: Id | None = None
    max_window_layers: Id = 0
    layer_types: list[str] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def rotation(self) -> Rotation:
        """How heads are rotated; transformers 5 nests this in rope_parameters, older files keep theta outside."""
        return next((table for table in (self.rope_scaling, self.rope_parameters) if table not in (None, Rotation())), Rotation())

    def settled(self) -> dict[str, Any]:
        """If any layer has a sliding window, the context is cut to the window, inside which attention is full."""
        named = "sliding_attention" in self.layer_types if self.layer_types else self.max_window_layers < self.layers
        window = self.sliding_window if self.use_sliding_window and named else None
        return {
            "context": self.positions if window is None else min(self.positions, window),
            "kv_heads": self.kv_heads or self.heads,
            "head_dim": self.head_dim or self.hidden // self.heads,
            "rope_theta": self.rotation.rope_theta or self.rope_theta or 10000.0,
        }


class Opt(Shape, kw_only=True):
    """config.json of OPT (Zhang et al. 2022); its norm adds 1e-5 to the variance."""

    FIXED: ClassVar = {
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
    }

    ffn: Count = field(name="ffn_dim", default=3072)
    attention_bias: bool = field(name="enable_bias", default=True)
    tied: bool = field(name="tie_word_embeddings", default=True)
    bos: Id | None = field(name="bos_token_id", default=2)
    eos: Ids = field(name="eos_token_id", default=2)
    word_embed_proj_dim: Count | None = None
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    layer_norm_elementwise_affine: bool = True

    def settled(self) -> dict[str, Any]:
        """Queries, keys and values are as wide as the hidden rows."""
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.hidden} evenly")
        width = {"kv_heads": self.heads, "head_dim": self.hidden // self.heads}
        return {"context": self.positions, "norm_eps": 1e-5, "mlp_bias": self.attention_bias, **width}


QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28}  # fmt: skip
LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096, "bos_token_id": 1,
                "eos_token_id": 2},
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": 128},
}  # fmt: skip
UNBIASED = {"attention_bias": False, "mlp_bias": False}
NOT_READ: dict[str, dict[str, Any]] = {
    "mistral": UNBIASED | {"layer_types": None, "use_sliding_window": True, "max_window_layers": 0},
    "qwen2": UNBIASED,
    "qwen3": {"mlp_bias": False},
}


def shape_of(raw: dict[str, Any], family: str, path: Path) -> Opt | Rotary:
    """A config.json as transformers reads it for this family: with its defaults, and without the fields it ignores."""
    whole = {**LEFT_OUT.get(family, {}), **raw, **NOT_READ.get(family, {})}
    return shaped(whole, Opt, path) if family == "opt" else shaped(whole, Rotary, path)


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
    name: str
    template: str


class Speech(Struct):
    """tokenizer_config.json, as far as chat templates need it: the template, or several by name, and special tokens."""

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
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name.endswith("_token")}
        texts = {name: token.content if isinstance(token, Text) else token for name, token in given.items()}
        return {name: text for name, text in texts.items() if text}


class Index(Struct):
    """model.safetensors.index.json: the file of every tensor."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


class PublicHead(Struct):
    """The options of a FlashHead in the public layout."""

    flash_head_cache_dir: str | None = None
    flash_head_special_token_ids: Ids = None
    n_probes: Count | None = None

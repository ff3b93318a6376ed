"""Which Hugging Face tensors make up each of our modules."""

from __future__ import annotations

from flashspec.models.config import ModelConfig

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")

_LAYER = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": QKV,
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": GATE_UP,
    "mlp.down": ("mlp.down_proj",),
}
_OPT_LAYER = {
    "attention_norm": ("self_attn_layer_norm",),
    "attention.qkv": QKV,
    "attention.out": ("self_attn.out_proj",),
    "mlp_norm": ("final_layer_norm",),
    "mlp.up": ("fc1",),
    "mlp.down": ("fc2",),
}
_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_OPT_OUTER = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
}


def sources(module: str, config: ModelConfig) -> tuple[str, ...]:
    """The Hugging Face modules whose rows, stacked in order, are our module of this name."""
    opt = config.family == "opt"
    outer = _OPT_OUTER if opt else _OUTER
    if module in outer:
        return (outer[module],)
    _, index, inner = module.split(".", 2)
    above = "model.decoder.layers" if opt else "model.layers"
    return tuple(f"{above}.{index}.{name}" for name in (_OPT_LAYER if opt else _LAYER)[inner])


def row_counts(module: str, rows: int, config: ModelConfig) -> tuple[int, ...]:
    """How many of our module's rows come from each of its sources."""
    if module.endswith("attention.qkv"):
        return config.qkv_rows
    if module.endswith("mlp.gate_up"):
        return (config.ffn, config.ffn)
    return (rows,)


def ignored(tensor: str, tied: bool) -> bool:
    """Tensors that carry nothing: saved rotary frequencies, and the copy of a tied head."""
    return tensor.endswith("rotary_emb.inv_freq") or (tied and tensor == "lm_head.weight")

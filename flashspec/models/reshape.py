"""Depth against width at fixed parameters: the same body, spread over another number of layers."""

from __future__ import annotations

from dataclasses import replace

from flashspec.models.config import ModelConfig

STEP = 8


def reshaped(config: ModelConfig, layers: int) -> ModelConfig:
    """A shape of `layers` layers whose body has as many parameters as the given one, within the rounding of heads and channels.

    Heads, key/value heads and hidden width grow with the root of the ratio of depths, head width stays, feed-forward
    channels make up the rest. Raises ValueError for less than one layer, or where nothing is left for channels.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    group, scale = config.heads // config.kv_heads, (config.layers / layers) ** 0.5
    kv_heads = max(1, round(config.kv_heads * scale))
    hidden = config.hidden * kv_heads * group // config.heads
    wide = replace(config, layers=layers, hidden=hidden, heads=kv_heads * group, kv_heads=kv_heads, ffn=STEP)
    channels = (config.body_parameters - wide.body_parameters) / (layers * hidden * (3 if config.gated else 2))
    ffn = STEP + STEP * round(channels / STEP)
    if ffn < STEP:
        raise ValueError(f"at {layers} layers attention alone has more parameters than the body had; take fewer layers")
    return replace(wide, ffn=ffn)

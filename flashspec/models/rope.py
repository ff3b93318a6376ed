"""Rotary frequencies (Su et al. 2021) and their scalings."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from flashspec.models.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position, [head_dim / 2]: scaled as the config says."""
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

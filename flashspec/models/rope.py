"""Rotary frequencies (Su et al. 2021) and their scalings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashspec.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position, [head_dim / 2]: scaled as the config says."""
    inverse = plain_frequencies(config)
    rope = config.rope
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / inverse
        smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * inverse / rope.factor + smooth * inverse
    return inverse


def plain_frequencies(config: ModelConfig) -> Tensor:
    """The same without any scaling."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / config.rope_theta**steps


def divisors(config: ModelConfig) -> Tensor:
    """What a GGUF file keeps of Llama 3's scaling as rope_freqs.weight: each frequency's divisor, [head_dim / 2]."""
    return plain_frequencies(config) / inverse_frequencies(config)

"""The best id of probed blocks: a fused kernel on CUDA, and the slow obvious way that it must equal."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def fused(states: Tensor, blocks: Tensor) -> bool:
    """Whether the Triton kernel serves these: on CUDA, not in float64, with Triton installed."""
    return states.device.type == "cuda" and blocks.dtype is not torch.float64 and blocks.is_contiguous() and _triton()


def reference(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Best id [n] and its logit [n] among logits and ids [n, m]; of equal logits the smallest id wins."""
    best = logits.amax(1)
    beaten = logits < best[:, None]
    return ids.masked_fill(beaten, torch.iinfo(ids.dtype).max).amin(1), best

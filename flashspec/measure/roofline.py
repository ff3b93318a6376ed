"""Bytes, floating-point operations and measured bandwidth: what a part must cost, beside what it does cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashspec.measure import clock
from flashspec.models.config import ModelConfig


@dataclass(frozen=True)
class Work:
    """Memory traffic in bytes and arithmetic in FLOPs; a multiply-add counts as two."""

    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def roof(device: str, megabytes: int = 1024) -> float:
    """Bytes a second at which the device reads memory larger than its caches: the best of several sums."""
    block = torch.ones((megabytes if device != "cpu" else 64) << 18, device=device)
    seconds = [clock.seconds_of(block.sum, device) for _ in range(8)]
    return block.nbytes / min(seconds)


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes that one pass over these modules reads: parameters and persistent buffers, each storage once."""
    tensors: dict[int, int] = {}
    for module in modules:
        for tensor in module.state_dict(keep_vars=True).values():
            if isinstance(tensor, Tensor):
                tensors[tensor.data_ptr()] = tensor.nbytes
    return sum(tensors.values())


def body_work(config: ModelConfig, rows: int, seen: int, itemsize: float = 2, cached: int = 4) -> Work:
    """One forward of `rows` new tokens behind `seen` old ones, without embedding and head.

    Weights are read once, keys and values of all earlier tokens are read and the new ones written.
    `itemsize` is bytes a weight, a fraction for packed formats; `cached` is bytes a cached number, 4 in the compiled kernels.
    """
    cache = config.kv_bytes_per_token(cached)
    traffic = int(config.body_parameters * itemsize) + cache * (seen + 2 * rows)
    attended = rows * seen + rows * (rows + 1) // 2
    attention = 4 * config.layers * config.heads * config.head_dim * attended
    return Work(traffic, 2 * rows * config.body_parameters + attention)

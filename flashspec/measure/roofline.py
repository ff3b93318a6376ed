"""Bytes, floating-point operations and measured bandwidth: what a part must cost, beside what it does cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashspec.measure import clock
from flashspec.model.config import ModelConfig


@dataclass(frozen=True)
class Work:
    """Memory traffic in bytes and arithmetic in FLOPs; a multiply-add counts as two."""

    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Bandwidth:
    """Raw seconds of reading `bytes` from memory once, as measured on this machine in this run."""

    bytes: int
    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Bytes per second of the fastest read: the roof."""
        return self.bytes / min(self.seconds)

    @property
    def median(self) -> float:
        """Bytes per second of the median read."""
        return self.bytes / clock.median(self.seconds)


def bandwidth(megabytes: int = 256, repeats: int = 7) -> Bandwidth:
    """Read a float32 tensor larger than any cache and time it, the fastest of a sum and a matrix-vector product."""
    block = torch.ones(megabytes << 18).view(-1, 1024)
    vector = torch.ones(1024)
    raw = clock.interleaved_seconds({"sum": block.sum, "product": lambda: torch.mv(block, vector)}, clock.Plan(repeats))
    return Bandwidth(block.nbytes, tuple(min(raw.values(), key=min)))


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

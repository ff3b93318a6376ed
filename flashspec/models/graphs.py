"""Fixed shapes: a forward whose position is a tensor, so that CUDA can record it once.

FLASHSPEC_GRAPHS is "auto" (record on CUDA), "0" (the torch engine) or "eager" (fixed shapes without recording).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flashspec.models.engine import Slot, TorchEngine
from flashspec.models.transformer import At, Transformer

FLAG = "FLASHSPEC_GRAPHS"
CHOICES = ("auto", "0", "eager")
LARGEST = 16
KEYS = 256


def choice() -> str:
    """The flag's value; ValueError for an unknown one."""
    found = os.environ.get(FLAG, "auto")
    if found not in CHOICES:
        raise ValueError(f"{FLAG} must be one of {', '.join(CHOICES)}, got {found!r}")
    return found


def wanted(device: torch.device) -> bool:
    """Whether readers on this device run on fixed shapes."""
    return choice() == "eager" or (choice() == "auto" and device.type == "cuda")


class FixedSlot(NamedTuple):
    """A layer's cache, read up to a fixed length, and the keys [n, keys] that each of n rows may see."""

    slot: Slot
    mask: Tensor

    def write(self, at: At, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store [1, kv_heads, n, head_dim] at positions [n]; the cache's first keys, and the mask over them."""
        for table, rows in ((self.slot.keys, keys), (self.slot.values, values)):
            table.index_copy_(2, cast(Tensor, at), rows)
        stop = self.mask.shape[1]
        return self.slot.keys[:, :, :stop], self.slot.values[:, :, :stop], self.mask


class FixedEngine(TorchEngine):
    """The torch engine for up to LARGEST rows at fixed shapes, recorded as CUDA graphs on CUDA.

    One graph serves every position with the same number of rows and length of cache, rounded up to KEYS.
    """

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        super().__init__(model, start, stop, context)
        self.begin = torch.zeros((), dtype=torch.int64, device=model.device)
        self.record = model.device.type == "cuda" and choice() == "auto"
        self._forwards: dict[tuple[int, int], tuple[Tensor, Callable[[], Any]]] = {}

    def run(self, x: Tensor, start: int) -> Tensor:
        if len(x) > LARGEST:
            return super().run(x, start)
        self.begin.fill_(start)
        shape = len(x), self.keys(start + len(x))
        if shape not in self._forwards:
            rows = x.clone()
            self._forwards[shape] = rows, self.repeatable(partial(self.forward(*shape), rows))
        rows, again = self._forwards[shape]
        rows.copy_(x)
        return again().clone()

    def repeatable(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """A step, as a graph where this engine records; the next call overwrites its result."""
        return Replay(step, self.begin.device) if self.record else step

    def keys(self, stop: int) -> int:
        """The fixed length of cache that rows before `stop` are read at."""
        return min(self.context, -(-stop // KEYS) * KEYS)

    def forward(self, n: int, keys: int) -> Callable[[Tensor], Tensor]:
        """A function of rows [n, hidden] and of `begin` alone."""
        steps = torch.arange(n, device=self.begin.device)
        columns = torch.arange(keys, device=self.begin.device)

        def forward(x: Tensor) -> Tensor:
            positions = self.begin + steps
            mask = columns <= positions[:, None]
            return self.through(x, positions, [FixedSlot(slot, mask) for slot in self.slots])

        return forward


def recorded(call: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of a call, recorded after two warm-up calls, and the result, which every replay overwrites."""
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            call()
            call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
    return graph, result


class Replay:
    """A call recorded as a CUDA graph; each replay overwrites its result.

    The call is kept: a graph reads the tensors that it closes over, but keeps none of them alive.
    """

    def __init__(self, call: Callable[[], Any], device: torch.device) -> None:
        self.call = call
        self.graph, self.result = recorded(call, device)

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result

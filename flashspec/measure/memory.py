"""Bytes of the tensors that a method keeps alive, counted exactly: every storage once, named by what it is for."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.cascade import advance
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits, State
from flashspec.heads.flash import FlashHead


@dataclass(frozen=True)
class Footprint:
    """Bytes by use: model weights, key/value caches, retained rows, FlashHead's index, and everything else (norm copies)."""

    weights: int
    cache: int
    rows: int
    index: int
    other: int

    @property
    def total(self) -> int:
        """All but the index, which is reported apart."""
        return self.weights + self.cache + self.rows + self.other


def footprint(stages: Iterable[Stage]) -> Footprint:
    """What these stages hold, shared storages counted once; works on the meta device too."""
    stages, counted = list(stages), set[int]()
    readers, heads = [s.reader for s in stages], [s.head for s in stages]
    flash = [head for head in heads if isinstance(head, FlashHead)]
    weights = [getattr(reader, "model", None) for reader in readers]
    cache = [getattr(getattr(reader, "engine", None), "slots", None) for reader in readers]
    uses = (weights, cache, [reader.rows for reader in readers], [(h.table, h.clusters) for h in flash], stages)
    return Footprint(*(bytes_of(held(use), counted) for use in uses))


def proposal_bytes(stages: list[Stage], prompt: list[int], limits: Limits) -> int:
    """Most bytes of proposals that wait at once in a decode of this prompt, every storage once."""
    state, most = State.start(stages, prompt, limits), 0
    with torch.inference_mode():
        while state.room:
            for _ in advance(state):
                most = max(most, bytes_of(held([each.scores for each in state.waiting])))
    return most


def bytes_of(tensors: Iterable[Tensor], counted: set[int] | None = None) -> int:
    """Bytes of the storages behind tensors, without those in `counted`, which grows."""
    known, total = set() if counted is None else counted, 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            total += storage.nbytes()
    return total


def held(value: Any, seen: dict[int, Any] | None = None) -> Iterator[Tensor]:
    """Tensors that a value reaches through attributes, containers, closures and bound methods."""
    seen = {} if seen is None else seen
    if id(value) in seen or isinstance(value, (type, str, bytes, int, float)):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from held(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    return [value.__self__] if isinstance(value, MethodType) else list(getattr(value, "__dict__", {}).values())


def live_bytes() -> int:
    """Bytes of all tensors alive in this process: the twin that a footprint's growth must equal."""
    gc.collect()
    return bytes_of(found for found in gc.get_objects() if issubclass(type(found), Tensor))

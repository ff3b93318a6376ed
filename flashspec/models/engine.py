"""How a span of layers is computed: in torch on any device, or by the compiled kernels on CPU.

Both hold the span's key/value cache. The torch engine is the naive twin that the kernels must equal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.build import call, structure
from flashspec.kernels.integers import PANEL, Shelf
from flashspec.models.config import OFFSET, ModelConfig, layer_parts
from flashspec.models.packed import PackedLinear
from flashspec.models.transformer import At, Layer, Transformer


class Slot:
    """One layer's keys and values, [batch, kv_heads, context, head_dim] each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def write(self, at: At, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Store [batch, kv_heads, n, head_dim] from position `at` on; everything so far, for rows that end with it."""
        start, stop = int(at), int(at) + keys.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = keys, values
        return self.keys[:, :, :stop], self.values[:, :, :stop], None


def slots_of(model: Transformer, layers: int, context: int, dtype: torch.dtype, batch: int = 1) -> list[Slot]:
    """Empty caches for this many layers of a model."""
    shape = (2, batch, model.config.kv_heads, context, model.config.head_dim)
    shelf, device = Shelf(), model.embed.weight.device
    return [Slot(*shelf.zeros(shape, dtype, device)) for _ in range(layers)]


class TorchEngine:
    """The span in torch: any device, any floating type, quantised layers included."""

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        self.model, self.layers = model, model.blocks[start:stop]
        self.row_dtype = model.embed.weight.dtype
        self.slots = slots_of(model, stop - start, context, self.row_dtype)
        self.lowest, self.context, self._kept = start == 0, context, (-1, torch.empty(0))

    def keep(self, number: int) -> Tensor:
        """From now on, keep the rows that enter the layer of this number, by position [context, hidden]."""
        self._kept = number, self.model.embed.weight.new_zeros(self.context, self.model.config.hidden)
        return self._kept[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [n, hidden] of tokens [n], without positions."""
        return self.model.embed(tokens)

    def run(self, x: Tensor, start: int) -> Tensor:
        """Rows [n, hidden] after the span, for x at positions start..start+n-1; x may be overwritten."""
        return self.through(x, start, self.slots)

    def through(self, x: Tensor, at: At, slots: Sequence[Any]) -> Tensor:
        """Rows [n, hidden] after the span, with these caches."""
        x = self.model.place(x[None], at) if self.lowest else x[None]
        number, kept = self._kept
        for i, (layer, slot) in enumerate(zip(self.layers, slots, strict=True)):
            if i == number:
                kept[at if isinstance(at, Tensor) else slice(at, at + x.shape[1])] = x[0]
            x = layer(x, self.model.rope, at, slot)
        return x[0]


CHUNK = 256  # rows of a prompt that are carried at once
SHAPE, LAYER = structure("Shape"), structure("Layer")


class KernelEngine:
    """The span in one C call: weights in float32, bfloat16 or integers, rows and cache in float32."""

    row_dtype = torch.float32

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        self.model, self.count, self.context = model, stop - start, context
        self._kept: list[Tensor | kernels.Packed | None] = []
        self.slots, self.lowest = slots_of(model, self.count, context, torch.float32), start == 0
        self._layers = (LAYER * self.count)(*map(self._layer, model.blocks[start:stop], self.slots))
        c, rope = model.config, model.rope
        angles = [self._wide(None if c.learned_positions else angle[:context]) for angle in (rope.cos, rope.sin)]
        sizes = (c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim, context)
        self._shape = SHAPE(*sizes, c.qk_norm, c.gated, c.norm_eps, *angles)
        self._scratch = torch.empty(0)

    def _keep(self, tensor: Tensor | None) -> int:
        self._kept.append(tensor)
        return 0 if tensor is None else tensor.data_ptr()

    def _wide(self, parameter: Tensor | None) -> int:
        return self._keep(None if parameter is None else parameter.detach().float().contiguous())

    def _matrix(self, table: Tensor | kernels.Packed) -> ctypes.Structure:
        kept = table if isinstance(table, kernels.Packed) else table.detach().contiguous()
        self._kept.append(kept)
        return kernels.matrix(kept)

    def _layer(self, layer: Layer, slot: Slot) -> ctypes.Structure:
        attention, products = layer.attention, _products(layer, self.model.config)
        matrices = [self._matrix(part) for product, rows in products for part in _parts(product, rows) or ()]
        if not self.model.config.gated:
            matrices.insert(4, kernels.NOTHING)
        biases = [self._wide(getattr(product, "bias", None)) for product, _ in products]
        norms = (layer.attention_norm, layer.mlp_norm, attention.q_norm, attention.k_norm)
        behind = [tuple(self._wide(getattr(norm, leaf, None)) for leaf in ("weight", "bias")) for norm in norms]
        return LAYER(*matrices, *biases, *behind, self._keep(slot.keys), self._keep(slot.values), 0)

    def keep(self, number: int) -> Tensor:
        kept = torch.zeros(self.context, self.model.config.hidden)
        self._layers[number].passed = self._keep(kept)
        return kept

    def writer(self, scoring: kernels.Scoring, before: Tensor | None = None) -> kernels.Writer:
        """These layers and a head as one burst writer, above rows [context, hidden] or the embedding."""
        places, embedding = self.model.positions, self._matrix(self.model.embed.weight)
        added = kernels.NOTHING if places is None else self._matrix(places.weight[OFFSET:])
        shape, layers, head = map(ctypes.addressof, (self._shape, self._layers, scoring.head))
        made = kernels.WRITER(shape, layers, self.count, embedding, added, head, self._keep(before))
        return kernels.Writer(made, scoring, self)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed(tokens).float()

    def run(self, x: Tensor, start: int) -> Tensor:
        x = (self.model.place(x, start) if self.lowest else x).contiguous()
        shape, threads = ctypes.byref(self._shape), torch.get_num_threads()
        for at in range(0, len(x), CHUNK):
            part = x[at : at + CHUNK]
            needed = call("fs_scratch", shape, len(part), threads)
            if needed > len(self._scratch):  # as large as the largest chunk needed
                self._scratch = torch.empty(needed)
            call("fs_span", shape, self._layers, self.count, part, len(part), start + at, threads, self._scratch)
        return x


Engine = TorchEngine | KernelEngine


def _products(layer: Layer, config: ModelConfig) -> list[tuple[nn.Module, tuple[int, ...]]]:
    found = layer_parts(config, "").items()
    return [(layer.get_submodule(name), tuple(part.rows.values())) for name, part in found if part.columns]


def _parts(product: nn.Module, rows: tuple[int, ...]) -> list[Any] | None:
    """The matrices, of these many rows, of a product; None for one that the kernels do not compute."""
    if isinstance(product, PackedLinear):
        if len(product.packed) == len(rows):
            return list(product.packed)
        if any(start % PANEL for start in accumulate(rows[:-1])):
            return None
    elif not isinstance(product, nn.Linear) or product.weight.dtype not in kernels.WEIGHTS:
        return None
    return [product.weight[stop - count : stop] for count, stop in zip(rows, accumulate(rows), strict=True)]


def kernel_ready(model: Transformer) -> bool:
    """Whether the kernels compute this model: plain matrices or integers, on CPU, widths multiples of 8."""
    c = model.config
    served = all(_parts(*each) for layer in model.blocks for each in _products(layer, c))
    even = not any(size % 8 for size in (c.hidden, c.ffn, c.head_dim))
    return served and even and model.device.type == "cpu" and kernels.available()

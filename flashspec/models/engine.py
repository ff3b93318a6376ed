"""How a span of layers is computed: in torch on any device, by the compiled kernels on CPU, or at fixed shapes.

All hold the span's key/value cache. The torch engine is the naive twin that the others must equal. At fixed shapes a position
is a tensor, so that CUDA can record a forward once. FLASHSPEC_GRAPHS is "auto" (record on CUDA), "0" (nothing recorded) or
"eager" (fixed shapes without recording).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.build import call, structure
from flashspec.kernels.integers import PANEL, Shelf
from flashspec.models.config import OFFSET, ModelConfig, layer_parts
from flashspec.models.packed import PackedLinear
from flashspec.models.transformer import At, Layer, Transformer

FLAG = "FLASHSPEC_GRAPHS"
CHOICES = ("auto", "0", "eager")
LARGEST = 16  # rows of a fixed shape
KEYS = 256
SHAPE, LAYER = structure("Shape"), structure("Layer")


class Slot(NamedTuple):
    """One layer's keys and values, [batch, kv_heads, context, head_dim] each."""

    keys: Tensor
    values: Tensor

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
        self._kept = number, torch.zeros(self.context, self.model.config.hidden, dtype=self.row_dtype, device=self.model.device)
        return self._kept[1]

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


class KernelEngine:
    """The span in one C call: weights in float32, bfloat16 or integers, rows and cache in float32."""

    row_dtype = torch.float32

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        self.model, self.count, self.context = model, stop - start, context
        self.layers = model.blocks[start:stop]
        self._kept: list[Tensor | kernels.Packed | None] = []
        self.slots, self.lowest = slots_of(model, self.count, context, torch.float32), start == 0
        self._layers = (LAYER * self.count)(*map(self._layer, self.layers, self.slots))
        c, rope = model.config, model.rope
        angles = [self._wide(None if c.opt else angle[:context]) for angle in (rope.cos, rope.sin)]
        sizes = (c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim, context)
        self._shape = SHAPE(*sizes, c.qk_norm, not c.opt, c.norm_eps, *angles)
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
        attention, mlp = layer.attention, layer.mlp
        matrices = [self._matrix(table) for table in _matrices(layer, self.model.config)]
        if self.model.config.opt:
            matrices.insert(4, kernels.NOTHING)
        biases = [self._wide(product.bias) for product in (attention.qkv, attention.out, mlp.up, mlp.down)]
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

    def run(self, x: Tensor, start: int) -> Tensor:
        return self._carry(self.model.place(x, start) if self.lowest else x, start)

    def run_together(self, others: Sequence[KernelEngine], x: Tensor, numbers: Tensor, positions: Tensor) -> Tensor:
        """Rows [n, hidden] of several texts after the span: x[r] is at positions[r] of the text of engine numbers[r].

        The engines are this one and the others, of the same layers and context; each row is what its own would give.
        """
        texts = torch.tensor([ctypes.addressof(engine._layers) for engine in (self, *others)])
        return self._carry(self.model.place(x, positions) if self.lowest else x, 0, texts, numbers, positions)

    def _carry(self, x: Tensor, start: int, *places: Tensor) -> Tensor:
        x, shape, threads = x.contiguous(), ctypes.byref(self._shape), torch.get_num_threads()
        if (needed := call("fs_scratch", shape, len(x), threads)) > len(self._scratch):  # as large as the longest text needed
            self._scratch = torch.empty(needed)
        call("fs_span", shape, self._layers, self.count, x, len(x), start, *(places or (None,) * 3), threads, self._scratch)
        return x


Engine = TorchEngine | KernelEngine


def _matrices(layer: Layer, config: ModelConfig) -> list[Any]:
    """The matrices of a layer in the kernels' order; None in the place of a product that they do not compute."""
    found: list[Any] = []
    for product, part in ((layer.get_submodule(name), part) for name, part in layer_parts(config, "").items() if part.columns):
        stops = list(accumulate(part.rows.values()))
        if isinstance(product, PackedLinear) and len(product.packed) == len(stops):
            found += product.packed
        elif isinstance(product, PackedLinear) and any(stop % PANEL for stop in stops[:-1]):
            found.append(None)
        elif isinstance(product, nn.Linear | PackedLinear) and product.weight.dtype in kernels.WEIGHTS:
            found += [product.weight[start:stop] for start, stop in pairwise([0, *stops])]
        else:
            found.append(None)
    return found


def kernel_ready(model: Transformer) -> bool:
    """Whether the kernels compute this model: plain matrices or integers, on CPU, widths multiples of 8."""
    c = model.config
    served = all(table is not None for layer in model.blocks for table in _matrices(layer, c))
    even = not any(size % 8 for size in (c.hidden, c.ffn, c.head_dim))
    return served and even and model.device.type == "cpu" and kernels.available()


def choice(device: torch.device) -> str:
    """What the flag says of a device: "record", "eager" or "0"; ValueError for an unknown value."""
    found = os.environ.get(FLAG, "auto")
    if found not in CHOICES:
        raise ValueError(f"{FLAG} must be one of {', '.join(CHOICES)}, got {found!r}")
    return found if found != "auto" else "record" if device.type == "cuda" else "0"


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
        self.record = choice(model.device) == "record"
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

"""How a span of layers is carried out: in torch on any device, or by the compiled kernels on CPU.

Both hold the span's key/value cache, allocated once. The torch engine is the naive twin the kernels must equal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels.build import compiled
from flashspec.model.transformer import Layer, Transformer


class Engine(Protocol):
    """Carries rows through a span of layers."""

    row_dtype: torch.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [n, hidden] of tokens [n], without positions."""

    def run(self, x: Tensor, start: int) -> Tensor:
        """Rows [n, hidden] after the span, for x at positions start..start+n-1; x may be overwritten."""


class Slot:
    """One layer's keys and values, [kv_heads, context, head_dim] each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Store [1, kv_heads, n, head_dim] at `start`; return views of everything up to start + n."""
        stop = start + keys.shape[2]
        self.keys[:, start:stop], self.values[:, start:stop] = keys[0], values[0]
        return self.keys[None, :, :stop], self.values[None, :, :stop], None


def _slots(model: Transformer, layers: int, context: int, dtype: torch.dtype) -> list[Slot]:
    shape = (2, model.config.kv_heads, context, model.config.head_dim)
    return [Slot(*torch.zeros(shape, dtype=dtype, device=model.embed.weight.device)) for _ in range(layers)]


class TorchEngine:
    """The span in torch: any device, any floating type, quantised layers included."""

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        self.model, self.layers = model, model.blocks[start:stop]
        self.row_dtype = model.embed.weight.dtype
        self.slots = _slots(model, stop - start, context, self.row_dtype)
        self.lowest = start == 0

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed(tokens)

    def run(self, x: Tensor, start: int) -> Tensor:
        x = self.model.place(x[None], start) if self.lowest else x[None]
        for layer, slot in zip(self.layers, self.slots, strict=True):
            x = layer(x, self.model.rope, start, slot)
        return x[0]


_COUNTS = ("hidden", "ffn", "heads", "kv_heads", "head_dim", "context", "bf16", "qk_norm")


class _Shape(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("eps", ctypes.c_double),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
    ]


_POINTERS = ("qkv", "out", "gate_up", "down", "attention_norm", "mlp_norm", "q_norm", "k_norm", "keys", "values")


class _Layer(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_void_p) for name in _POINTERS]


class KernelEngine:
    """The span in one C call: weights as the checkpoint has them (float32 or bfloat16), rows and cache in float32."""

    row_dtype = torch.float32

    def __init__(self, model: Transformer, start: int, stop: int, context: int) -> None:
        self.model, self.count, self.context = model, stop - start, context
        self._kept: list[Tensor] = []
        self.slots = _slots(model, self.count, context, torch.float32)
        layers = zip(model.blocks[start:stop], self.slots, strict=True)
        self._layers = (_Layer * self.count)(*(self._layer(layer, slot) for layer, slot in layers))
        self._shape = self._describe()
        self._scratch, self._room = torch.empty(0), (0, 0)

    def _keep(self, tensor: Tensor) -> int:
        """Address of a tensor that stays alive with the engine."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _layer(self, layer: Layer, slot: Slot) -> _Layer:
        attention, mlp = layer.attention, layer.mlp
        matrices = (attention.qkv, attention.out, mlp.gate_up, mlp.down)
        norms = (layer.attention_norm, layer.mlp_norm, attention.q_norm, attention.k_norm)
        addresses = [self._keep(m.weight.detach().contiguous()) for m in matrices]
        addresses += [0 if isinstance(n, nn.Identity) else self._keep(n.weight.detach().float().contiguous()) for n in norms]
        return _Layer(*addresses, self._keep(slot.keys), self._keep(slot.values))

    def _describe(self) -> _Shape:
        c, bf16 = self.model.config, self.model.blocks[0].mlp.down.weight.dtype is torch.bfloat16
        angles = [self._keep(t[: self.context].float().contiguous()) for t in (self.model.rope.cos, self.model.rope.sin)]
        return _Shape(c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim, self.context, bf16, c.qk_norm, c.norm_eps, *angles)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed(tokens).float()

    def run(self, x: Tensor, start: int) -> Tensor:
        x, threads = x.contiguous(), torch.get_num_threads()
        shape, numbers = ctypes.byref(self._shape), [ctypes.c_int64(n) for n in (len(x), start, threads)]
        if len(x) > self._room[0] or threads > self._room[1]:
            self._room = max(len(x), self._room[0]), max(threads, self._room[1])
            self._scratch = torch.empty(compiled().fs_scratch(shape, *(ctypes.c_int64(n) for n in self._room)))
        address, scratch = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(self._scratch.data_ptr())
        compiled().fs_span(shape, self._layers, ctypes.c_int64(self.count), address, *numbers, scratch)
        return x


def _kernel_ready(model: Transformer) -> bool:
    """Whether the kernels compute this model: plain float32 or bfloat16 matrices on CPU, widths multiples of 8, no biases,
    root-mean-square norms and rotary positions."""
    c, weight = model.config, model.embed.weight
    plain = all(isinstance(m, nn.Linear) and m.bias is None for m in model.layers.modules() if hasattr(m, "in_features"))
    same = plain and all(p.dtype is weight.dtype for p in model.layers.parameters() if p.ndim == 2)
    even = not any(size % 8 for size in (c.hidden, c.ffn, c.head_dim))
    return (
        same
        and even
        and not c.layer_norm
        and weight.device.type == "cpu"
        and weight.dtype in kernels.WEIGHTS
        and kernels.available()
    )


def engine_for(model: Transformer, start: int, stop: int, context: int) -> Engine:
    """The fastest engine that computes layers start..stop of this model on its device; see `graphs.wanted` for the flag."""
    from flashspec.model.graphs import FixedEngine, wanted

    kind: Callable[..., Engine] = KernelEngine if _kernel_ready(model) else TorchEngine
    if wanted(model.device):
        kind = FixedEngine
    return kind(model, start, stop, context)

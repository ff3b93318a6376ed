"""A lean decoder-only transformer: fused projections, rows before the final norm, layers callable as spans."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashspec.kernels.integers import Packed
from flashspec.models import checkpoint
from flashspec.models.config import OFFSET, ModelConfig, Part, inverse_frequencies, parts, to_hf
from flashspec.models.packed import PackedLinear
from flashspec.typed import typed

Filling = nn.Module | dict[str, Tensor]
At = int | Tensor  # where rows stand: the position of the first, or those of all [n], which only the device knows


def _span(at: At, rows: int, offset: int = 0) -> slice | Tensor:
    return at + offset if isinstance(at, Tensor) else slice(at + offset, at + offset + rows)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32, or float64 where x is (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype is torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class Rope(nn.Module):
    """Rotary angles for every position of the context, as [positions, head_dim] cosines and sines."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cos: Tensor
        self.sin: Tensor
        inverse = inverse_frequencies(config)
        angles = torch.outer(torch.arange(config.context, dtype=torch.float32), inverse)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """Rotate x [batch, heads, n, head_dim] by its positions."""
        where = _span(at, x.shape[-2])
        cos, sin = self.cos[where].to(x.dtype), self.sin[where].to(x.dtype)
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin


def norm_of(width: int, config: ModelConfig) -> RMSNorm | nn.LayerNorm:
    """The family's norm: root mean square, or mean and variance with a bias (Ba et al. 2016)."""
    return nn.LayerNorm(width, config.norm_eps) if config.opt else RMSNorm(width, config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention with a fused projection; rotary unless positions are learned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden, sum(config.qkv_rows), bias=config.qkv_bias)
        self.out = nn.Linear(config.qkv_rows[0], config.hidden, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope, at: At, cache: Any | None) -> Tensor:
        """x [batch, n, hidden]; without a cache (an engine's `Slot`) the rows attend to themselves only."""
        batch, n, _ = x.shape
        heads = self.qkv(x).view(batch, n, -1, self.config.head_dim).transpose(1, 2)
        q, k, v = heads.split((self.config.heads, self.config.kv_heads, self.config.kv_heads), dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if not self.config.opt:
            q, k = rope(q, at), rope(k, at)
        mask = None
        if cache is not None:
            k, v, mask = cache.write(at, k, v)
        return self.out(_attend(q, k, v, mask).transpose(1, 2).reshape(batch, n, -1))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal attention; without a mask the last query row is aligned with the last key."""
    n, seen = q.shape[-2], k.shape[-2]
    gqa = q.shape[1] != k.shape[1]
    if n == 1 and gqa and mask is None:  # the heads of a group as rows: nothing is copied for each of them
        return F.scaled_dot_product_attention(q.reshape(*k.shape[:2], -1, q.shape[-1]), k, v).reshape(q.shape)
    if n == seen and mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, enable_gqa=gqa)
    if n > 1 and mask is None:
        mask = torch.ones(n, seen, dtype=torch.bool, device=q.device).tril(seen - n)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)


class MLP(nn.Module):
    """SwiGLU with gate and up projections fused; without a gate a ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = not config.opt
        self.up = nn.Linear(config.hidden, (1 if config.opt else 2) * config.ffn, bias=config.mlp_bias)
        self.down = nn.Linear(config.ffn, config.hidden, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if not self.gated:
            return self.down(F.relu(up))
        gate, up = up.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = norm_of(config.hidden, config)
        self.attention = Attention(config)
        self.mlp_norm = norm_of(config.hidden, config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Rope, at: At = 0, cache: Any | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, at, cache)
        return x + self.mlp(self.mlp_norm(x))


class Embedding(nn.Embedding):
    """An embedding that does not initialise without memory: torch would import its compiler for a second."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Transformer(nn.Module):
    """Embedding, layers, final norm and vocabulary weight of one model.

    `forward(ids)` gives logits [batch, n, vocab]; readers and training walk the layers themselves.
    """

    @typed
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden)
        self.positions = Embedding(config.context + OFFSET, config.hidden) if config.opt else None
        with torch.device("cpu"):  # angles are numbers, even where the weights have no memory yet
            self.rope = Rope(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = norm_of(config.hidden, config)
        self.head = None if config.tied else nn.Linear(config.hidden, config.vocab_size, bias=False)

    @classmethod
    @typed
    def load(cls, folder: str | Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto") -> Transformer:
        """The model of a Hugging Face folder, of a GGUF file or of a draft that borrows, ready to read tokens.

        `dtype` "auto" keeps float32 and takes everything else as bfloat16. `weights` "int4" keeps an AWQ checkpoint's bits,
        "dense" widens them, "auto" keeps them where that is fast. A GGUF file is read on the CPU. Raises FileNotFoundError or
        ValueError, naming the file or tensor, unless the files hold exactly this model and the free memory holds it.
        """
        found = checkpoint.opened(Path(folder), dtype, device, weights)
        return cls.filled(found.config, found.module, found.device)

    @classmethod
    def filled(cls, config: ModelConfig, module: Callable[[str, Part], Filling], device: torch.device) -> Transformer:
        """A model filled by `module`, which returns a layer, or tensors by leaf, for each of our modules."""
        with torch.device("meta"):
            model = cls(config)
        model.rope.to(device)
        for name, part in parts(config):
            found = module(name, part)
            if isinstance(found, nn.Module):
                model.set_submodule(name, found)
                continue
            for leaf, tensor in found.items():
                setattr(model.get_submodule(name), leaf, nn.Parameter(tensor))
        return model.eval()

    def save(self, folder: str | Path, dtype: str = "bfloat16", shard_bytes: int = checkpoint.SHARD_BYTES) -> None:
        """Write config.json and safetensors, several with an index above `shard_bytes`.

        An interrupted save leaves the folder as it was; a completed one removes an earlier save's weights and digests.json.
        Raises ValueError for a model on integer weights.
        """
        tensors = checkpoint.hf_tensors(self, self.config, dtype)
        checkpoint.write_folder(folder, tensors, to_hf(self.config, dtype), shard_bytes)

    @property
    def blocks(self) -> list[Layer]:
        """The layers, from the bottom."""
        return cast(list[Layer], list(self.layers))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.embed.weight.device

    @property
    def vocabulary(self) -> Tensor | Packed:
        """The vocabulary projection [vocab, hidden] as it is stored; the embedding where they are tied."""
        return cast("Tensor | Packed", self.embed.weight if self.head is None else self.head.weight)

    @property
    def head_weight(self) -> Tensor:
        """The vocabulary projection in floating point, widened in float32 where it is packed."""
        stored = self.vocabulary
        return stored.dequantised() if isinstance(stored, Packed) else stored

    def with_layers(self, layers: nn.ModuleList) -> Transformer:
        """A model of these layers that shares embedding, norms and head with this one."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "layers": layers}
        twin.config = replace(self.config, layers=len(layers))
        return twin

    def cut_vocabulary(self, size: int) -> None:
        """Drop all ids from `size` on, in place; no row is copied."""
        for name in ("embed", "head"):
            module: Any = getattr(self, name)
            if isinstance(module, PackedLinear):
                setattr(self, name, type(module)([module.weight[:size]]))
            elif module is not None:
                module.weight = nn.Parameter(module.weight.detach()[:size], requires_grad=module.weight.requires_grad)
        self.embed.num_embeddings = size
        self.config = replace(self.config, vocab_size=size)

    def place(self, x: Tensor, at: At) -> Tensor:
        """Embeddings x [..., n, hidden] as the first layer takes them: OPT adds learned positions."""
        return x if self.positions is None else x + self.positions.weight[_span(at, x.shape[-2], OFFSET)]

    def states(self, ids: Tensor, at: int = 0, caches: Sequence[Any] = ()) -> Iterator[Tensor]:
        """Hidden rows [batch, n, hidden] after each layer, for ids [batch, n] at position `at`, after what the caches hold."""
        x = self.place(self.embed(ids), at)
        for layer, cache in zip_longest(self.layers, caches):
            x = layer(x, self.rope, at, cache)
            yield x

    def rows(self, ids: Tensor) -> Tensor:
        """Hidden rows after the last layer, before the final norm."""
        return deque(self.states(ids), maxlen=1).pop()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, n, vocab] for ids [batch, n]."""
        rows, stored = self.norm(self.rows(ids)), self.vocabulary
        return PackedLinear([stored])(rows) if isinstance(stored, Packed) else F.linear(rows, stored)

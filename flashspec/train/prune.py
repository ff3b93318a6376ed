"""Structured pruning: which layers, heads and channels of a model matter on a text, and a model made of those.

Layers count by how far they turn the residual stream (Gromov et al. 2024), heads by the norm of what they add to it, channels
by their activation's norm times their down-projection's (after Wanda, Sun et al. 2023). The width is kept.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashspec.models.config import ModelConfig
from flashspec.models.transformer import Transformer


class Importance(NamedTuple):
    """What matters on a text: angles of the layers [L] in half turns, mean norms of what heads add [L, H], channels [L, F]."""

    layers: Tensor
    heads: Tensor
    channels: Tensor


class Choice(NamedTuple):
    """What is kept: layers, and for each its key/value heads, query heads and channels."""

    layers: list[int]
    groups: list[list[int]]
    heads: list[list[int]]
    channels: list[list[int]]


@torch.no_grad()
def importance(model: Transformer, ids: Tensor) -> Importance:
    """Importance on ids [n, length]; the model is not changed.

    Raises ValueError for a model whose matrices are packed.
    """
    if any(not isinstance(m, nn.Linear) for layer in model.blocks for m in (layer.attention.out, layer.mlp.down)):
        raise ValueError("this model's matrices are packed in 4 bits; load it with weights='dense' to prune it")
    found, seen = [], dict[nn.Module, Tensor]()

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module] = inputs[0].flatten(0, -2)

    x = model.place(model.embed(ids), 0)
    for layer in model.blocks:
        out, down = layer.attention.out, layer.mlp.down
        with out.register_forward_pre_hook(see), down.register_forward_pre_hook(see):
            y = layer(x, model.rope)
        channels = seen[down].square().mean(0).sqrt() * down.weight.norm(dim=0)
        cosine = torch.cosine_similarity(x.float(), y.float(), dim=-1).clamp(-1.0, 1.0)
        heads = (part.chunk(model.config.heads, dim=1) for part in (seen[out], out.weight))
        norms = [(rows @ weight.T).norm(dim=-1).mean() for rows, weight in zip(*heads, strict=True)]
        found.append((cosine.arccos().mean() / math.pi, torch.stack(norms), channels))
        x = y
    return Importance(*(torch.stack(column) for column in zip(*found, strict=True)))


def choose(found: Importance, target: ModelConfig, wanted: ModelConfig) -> Choice:
    """What to keep of a target's shape for the wanted one: what matters most, in the old order."""
    layers = _top(found.layers, wanted.layers)
    share, groups, heads = wanted.heads // wanted.kv_heads, [], []
    for layer in layers:
        scores = found.heads[layer].view(target.kv_heads, -1)
        kept = _top(scores.topk(share).values.sum(-1), wanted.kv_heads)
        groups.append(kept)
        heads.append([group * scores.shape[1] + head for group in kept for head in _top(scores[group], share)])
    return Choice(layers, groups, heads, [_top(found.channels[layer], wanted.ffn) for layer in layers])


def _top(scores: Tensor, count: int) -> list[int]:
    """Numbers of the highest scores, in rising order."""
    return sorted(scores.topk(count).indices.tolist())


@torch.no_grad()
def prune(model: Transformer, choice: Choice) -> Transformer:
    """A new float32 model with only what was chosen; the old one is not changed."""
    heads, kv_heads, ffn = (len(kept[0]) for kept in (choice.heads, choice.groups, choice.channels))
    draft = Transformer(replace(model.config, layers=len(choice.layers), heads=heads, kv_heads=kv_heads, ffn=ffn))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("layers.")}
    for number, layer in enumerate(choice.layers):
        rows, columns = _cuts(model.config, choice, number)
        for name, value in model.blocks[layer].state_dict().items():
            module, _, leaf = name.rpartition(".")
            value = value[rows[module]] if module in rows else value
            kept[f"layers.{number}.{name}"] = value[:, columns[module]] if module in columns and leaf == "weight" else value
    draft.load_state_dict(kept)
    return draft


def _cuts(config: ModelConfig, choice: Choice, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows of one layer's fused matrices that are kept, and their biases, and the columns of those that follow them."""
    query, key, _ = config.qkv_rows
    width = torch.arange(config.head_dim)
    heads, groups = (
        (torch.tensor(ids[number])[:, None] * config.head_dim + width).flatten() for ids in (choice.heads, choice.groups)
    )
    channels = torch.tensor(choice.channels[number])
    up = torch.cat([channels, config.ffn + channels]) if config.gated else channels
    rows = {"attention.qkv": torch.cat([heads, query + groups, query + key + groups]), "mlp.up": up}
    return rows, {"attention.out": heads, "mlp.down": channels}

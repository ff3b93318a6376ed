"""Toy models whose draft is sometimes right, and the text of a decode."""

import functools

import torch

from flashspec import FlashHead, Models, Sampling, Transformer, generate
from flashspec.models.config import ModelConfig

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
VOCAB = 61
TEMPERATURES = (0.0, 0.7, 1.5)


def config(layers, **changes):
    shape = {"hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2, "head_dim": 8, "tied": False}
    return ModelConfig(layers=layers, **{"family": "qwen3", "vocab_size": VOCAB, "context": 128, **shape, **changes})


def random_model(seed, layers=6, sharpness=4.0, **changes):
    """Random weights; higher layers change a row less, so that early exits are often right."""
    model = Transformer(config(layers, **changes)).eval().requires_grad_(False)
    dice = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.copy_(torch.randn(weight.shape, generator=dice) * weight.shape[1] ** -0.5)
    for depth, layer in enumerate(model.layers):
        for last in (layer.attention.out, layer.mlp.down):
            last.weight.mul_(1.5 * 0.6**depth)
    model.head_weight.mul_(sharpness)
    return model


def with_biases(model, seed=0):
    dice = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            weight.data.copy_(centre + 0.2 * torch.randn(weight.shape, generator=dice))
    return model


def imitation(target, layers, seed, noise, **changes):
    draft = Transformer(config(layers, **changes)).eval().requires_grad_(False)
    draft.load_state_dict({name: target.state_dict()[name] for name in draft.state_dict()})
    dice = torch.Generator().manual_seed(seed + 1000)
    for weight in draft.parameters():
        if weight.ndim == 2:
            weight += torch.randn(weight.shape, generator=dice) * weight.std() * noise
    return draft


def headed(models, probes=4):
    for which, model in {"target": models.target, "draft": models.draft}.items():
        if model is not None:
            models.heads[which, "flash"] = FlashHead.build(model.head_weight, model.norm, cluster_size=4, probes=probes)
    return models


@functools.cache
def duo(seed=0, dtype=torch.float64, noise=0.1, layers=6, **changes):
    target = random_model(seed, layers, **changes)
    return headed(Models(target.to(dtype), imitation(target, 2, seed, noise, **changes).to(dtype)), 3)


def run(models, method="dense", temperature=0.0, rule="coupling", **options):
    sampling = Sampling(temperature, seed=options.pop("seed", 7), rule=rule)
    options = {"max_new_tokens": 24, "stop": ()} | options
    return generate(models, options.pop("prompt", PROMPT), method, sampling, **options)


def text(models, method="dense", temperature=0.0, **options):
    return run(models, method, temperature, **options).tokens

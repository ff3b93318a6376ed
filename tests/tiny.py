"""Tiny random models and prompts for tests of decoding and measuring."""

import json

import torch

from flashspec import Models
from flashspec.models.config import ModelConfig
from flashspec.models.synthetic import synthetic

VOCAB = 512


def model(layers, hidden=32, dtype=torch.float32, seed=0):
    config = ModelConfig(
        family="qwen3", vocab_size=VOCAB, hidden=hidden, ffn=2 * hidden, layers=layers, heads=4, kv_heads=2, head_dim=8,
        context=256, tied=False,
    )  # fmt: skip
    return synthetic(config, dtype, seed)


def pair(dtype=torch.float32):
    target, draft = model(6, dtype=dtype), model(3, dtype=dtype)
    draft.load_state_dict({k: v for k, v in target.state_dict().items() if k in draft.state_dict()})
    return Models(target, draft)


def prompts_file(folder, kinds=("code", "prose"), each=1):
    rows = [
        {"kind": kind, "ids": [(7 * i + 13 * j + len(kind)) % VOCAB for i in range(12 + j)], "text": ""}
        for kind in kinds
        for j in range(each)
    ]
    path = folder / "prompts.json"
    path.write_text(json.dumps({"licence": "none", "prompts": rows}))
    return path

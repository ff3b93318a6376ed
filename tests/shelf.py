"""Tiny random models, their checkpoint folders and prompts; processes; refusals in one sentence; normal numbers."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashspec import Models
from flashspec.models.config import ModelConfig
from flashspec.models.synthetic import synthetic
from flashspec.models.writing import write_digests
from flashspec.provenance import digest
from flashspec.train import corpus
from flashspec.train.corpus import END, write_tokenizer

ROOT = Path(__file__).resolve().parent.parent
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


def python(*words, **variables):
    """A Python process that has ended: its status and what it wrote; with further environment variables."""
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, timeout=900)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def far(found, wanted):
    """The distance of two tensors, as a part of the second."""
    return float(((found.float() - wanted.float()).norm() / wanted.float().norm()).detach())


def interrupting(patch, owner, name, after):
    """Let a function be interrupted once it was called so many times."""
    calls, real = [], getattr(owner, name)

    def stopping(*given):
        calls.append(given)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given)

    patch.setattr(owner, name, stopping)


def here(find, *names):
    """What is found under these names; the test is skipped where it is not on this machine."""
    try:
        return find(*names)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def refused(words, call, *given, error=ValueError, **named):
    """The one sentence in which a call is refused, which matches these words."""
    with pytest.raises(error, match=words) as found:
        call(*given, **named)
    assert "\n" not in str(found.value)
    return str(found.value)


def refusing(cases, error=ValueError):
    """A test: each of these calls is refused in one sentence that matches its words."""

    @pytest.mark.parametrize(("call", "words"), cases, ids=[words for _, words in cases])
    def test(call, words):
        refused(words, call, error=error)

    return test


@functools.cache
def trained(text, size, end):
    return corpus.train_tokenizer([text], size, end).to_str(pretty=True)


def train_tokenizer(path, text, size=VOCAB, end=END):
    path.write_text(trained(text, size, end), encoding="utf-8")


def listing(place):
    """Every file with its digest, and every folder, below a place or at it."""
    paths = [place] if place.is_file() else place.rglob("*")
    return {str(path.relative_to(place)): digest(path) if path.is_file() else "" for path in paths}


def write_pair(home):
    train_tokenizer(home / "tokenizer.json", Path(__file__).with_name("test_cli.py").read_text())
    models = pair()
    for name in ("target", "draft"):
        models.model(name).save(home / name, "float32")
        write_tokenizer(home / name, home / "tokenizer.json")
        write_digests(home / name)
    return {"target": home / "target", "draft": home / "draft"}

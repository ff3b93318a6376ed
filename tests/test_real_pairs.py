"""Published models, where their files are: exact texts, and what rounding to their own bits changes. CI has none of them."""

import functools
import inspect
import textwrap

import pytest
import torch
from shelf import here
from torch.nn import functional as F

import flashspec as fs
from flashspec.decoding.models import folder_of
from flashspec.models.folder import PAIRS
from flashspec.models.transformer import Transformer

PROMPT = "def merge(left, right):\n    "


METHODS = {
    "qwen": (("dense", {"k": 3}), ("dense", {"k": 8, "finalize": "eager"}), ("auto", {"k": 4}), ("lookup", {})),
    "smollm2": (("lookup", {"k": 2}), ("lookup", {"k": 7})),
}
loaded = functools.cache(lambda name: fs.load(target=name, draft=["qwen:int4"] if name == "qwen" else "auto"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_exact_methods_print_plain_decodings_text(name, temperature):
    for role in PAIRS[name]:
        here(folder_of, name, role)

    def text(method, prompt=PROMPT, **options):
        sampling = fs.Sampling(temperature=temperature, seed=3)
        return fs.generate(loaded(name), prompt, method, sampling, max_new_tokens=32, stop=(), **options).tokens

    plain = text("baseline")
    assert all(text(method, **options) == plain for method, options in METHODS[name]) and text("baseline", PROMPT + " ") != plain


@torch.inference_mode()
def test_a_files_own_bits_say_what_its_widened_weights_say():
    path = here(folder_of, "qwen", "draft")
    ids = torch.tensor([fs.load(target=path, draft=None).encode(inspect.getsource(textwrap))[:600]])
    own, wide = (Transformer.load(path, weights=weights)(ids)[0].float() for weights in ("auto", "dense"))
    assert (own.argmax(1) == wide.argmax(1)).float().mean() >= 0.98
    losses = [F.cross_entropy(logits[:-1], ids[0, 1:]).item() for logits in (own, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3) and not torch.equal(own, wide)

"""Published models, where their files are: exact texts, and what rounding to their own bits changes. CI has none of them."""

import functools
import inspect
import textwrap

import pytest
import torch
from torch.nn import functional as F

import flashspec as fs
from flashspec.decoding.models import folder_of
from flashspec.models.pairs import PAIRS, homes
from flashspec.models.transformer import Transformer

PROMPT = "def merge(left, right):\n    "


def here(name, role="target"):
    file = PAIRS[name][role].file
    return pytest.mark.skipif(
        not any((home / file).is_file() for home in homes()), reason=f"needs {file}: flashspec fetch {name}"
    )


METHODS = {
    "qwen": (("dense", {"k": 3}), ("dense", {"k": 8, "finalize": "eager"}), ("auto", {"k": 4}), ("lookup", {})),
    "smollm2": (("lookup", {"k": 2}), ("lookup", {"k": 7})),
}
loaded = functools.cache(lambda name: fs.load(target=name, draft=["qwen:int4"] if name == "qwen" else "auto"))


@pytest.mark.parametrize("name", [
    pytest.param("qwen", marks=[here("qwen"), here("qwen", "draft")]), pytest.param("smollm2", marks=here("smollm2")),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_exact_methods_print_plain_decodings_text(name, temperature):
    def text(method, prompt=PROMPT, **options):
        sampling = fs.Sampling(temperature=temperature, seed=3)
        return fs.generate(loaded(name), prompt, method, sampling, max_new_tokens=32, stop=(), **options).tokens

    plain = text("baseline")
    assert all(text(method, **options) == plain for method, options in METHODS[name]) and text("baseline", PROMPT + " ") != plain


@here("qwen", "draft")
@torch.inference_mode()
def test_a_files_own_bits_say_what_its_widened_weights_say():
    path = folder_of("qwen", "draft")
    ids = torch.tensor([fs.load(target=path, draft=None).encode(inspect.getsource(textwrap))[:600]])
    own, wide = (Transformer.load(path, weights=weights)(ids)[0].float() for weights in ("auto", "dense"))
    assert (own.argmax(1) == wide.argmax(1)).float().mean() >= 0.98
    losses = [F.cross_entropy(logits[:-1], ids[0, 1:]).item() for logits in (own, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3) and not torch.equal(own, wide)

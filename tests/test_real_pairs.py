"""Published models, where their files are: exact texts, and what rounding to their own bits changes. CI has none of them."""

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


@pytest.fixture(scope="module")
def qwen():
    return fs.load(target="qwen", draft=["qwen:int4"])


@here("qwen")
@here("qwen", "draft")
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_exact_methods_print_plain_decodings_text_on_the_qwen_pair(qwen, temperature):
    sampling = fs.Sampling(temperature=temperature, seed=3)
    plain = fs.generate(qwen, PROMPT, "baseline", sampling, max_new_tokens=32, stop=()).tokens
    for method, options in (("dense", {"k": 3}), ("dense", {"k": 8, "finalize": "eager"}), ("auto", {"k": 4}), ("lookup", {})):
        assert fs.generate(qwen, PROMPT, method, sampling, max_new_tokens=32, stop=(), **options).tokens == plain
    other = fs.generate(qwen, PROMPT + " ", "baseline", sampling, max_new_tokens=32, stop=()).tokens
    assert other != plain


@here("smollm2")
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_exact_methods_print_plain_decodings_text_on_smollm2(temperature):
    models, sampling = fs.load(target="smollm2"), fs.Sampling(temperature=temperature, seed=3)
    plain = fs.generate(models, PROMPT, "baseline", sampling, max_new_tokens=48, stop=()).tokens
    for k in (2, 7):
        assert fs.generate(models, PROMPT, "lookup", sampling, max_new_tokens=48, stop=(), k=k).tokens == plain


@here("qwen", "draft")
@torch.inference_mode()
def test_a_files_own_bits_say_what_its_widened_weights_say():
    path = folder_of("qwen", "draft")
    ids = torch.tensor([fs.load(target=path, draft=None).encode(inspect.getsource(textwrap))[:600]])
    own, wide = (Transformer.load(path, weights=weights)(ids)[0].float() for weights in ("auto", "dense"))
    assert (own.argmax(1) == wide.argmax(1)).float().mean() >= 0.98
    losses = [F.cross_entropy(logits[:-1], ids[0, 1:]).item() for logits in (own, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3) and not torch.equal(own, wide)

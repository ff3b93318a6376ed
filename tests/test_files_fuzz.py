"""Five thousand spoiled files: each is read as a usable value, or refused in one sentence that names it."""

import json
import math
from dataclasses import replace

import pytest
import test_heads_storage
import torch
from fuzz import outcome, spoiled
from hypothesis import given, settings
from test_awq import SMALL, write_awq
from test_transformer import BASE, randomised

import flashspec as fs
from flashspec import FlashHead
from flashspec.heads.base import FILE
from flashspec.heads.candidates import ShortlistHead
from flashspec.models.adapter import Adapter
from flashspec.models.chat import chat_prompt, generation_defaults
from flashspec.models.config import from_hf
from flashspec.models.exits import EXITS_FILE, ExitAdapter, load_exits, save_exits
from flashspec.models.folder import Tensors, read_config, verify_digests
from flashspec.models.packed import scheme_of
from flashspec.models.tokenizer import tokenizer_of, words_of
from flashspec.models.writing import write_digests

CONFIG = replace(BASE, vocab_size=32, hidden=16, ffn=24, layers=2, heads=2, kv_heads=1, head_dim=8, context=64)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [3, 4], "min_p": 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("home")
    model = randomised(CONFIG)
    for name in ("model", "listed"):
        model.save(place / name, dtype="float32", shard_bytes=4_000)
        (place / name / "generation_config.json").write_text(json.dumps(GENERATION))
        _tokenizer(place / name)
    write_digests(place / "listed")
    save_exits({1: ExitAdapter(model, 3)}, place / "model" / EXITS_FILE)
    weight = model.head_weight.detach()
    FlashHead.build(weight, cluster_size=4, always=(3,)).save(place / "model")
    ShortlistHead.build(weight, torch.arange(20)).save(place / "model" / "fr_spec_head.safetensors")
    randomised(CONFIG).save(place / "whole", dtype="float32")
    write_awq(replace(SMALL, layers=1, vocab_size=32), place / "awq")
    test_heads_storage.fabricate(place / "public")
    return place


def _tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(30)} | {"?": 30}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _loaded(folder):
    models = fs.load(folder, None, dtype="float32", device="cpu")
    ids = models.encode("w1 w2") if models.tokenizer else [1]
    assert fs.generate(models, [i % models.target.config.vocab_size for i in ids[:1]], "baseline", max_new_tokens=1).tokens


def _facts(folder):
    raw, path = read_config(folder), folder / "config.json"
    config, _ = from_hf(raw, path), scheme_of(raw, path)
    assert min(config.layers, config.context, config.kv_heads) >= 1 and math.isfinite(config.rope_theta * config.norm_eps)


def _named(folder):
    assert all(isinstance(i, int) and isinstance(word, str) for i, word in words_of(folder).items())
    tokenizer_of(folder).encode("w1 w2")


ROWS = torch.ones(2, CONFIG.hidden)


def _exits(folder):
    for adapter in load_exits(folder / EXITS_FILE, randomised(CONFIG)).values():
        adapter(ROWS)


def _head(kind, file):
    return lambda folder: kind.load(folder / file, randomised(CONFIG).head_weight.detach())(ROWS)


CASES = {  # a file, what reads it, and how often it is spoiled
    "config": ("model/config.json", _facts, 1500),
    "awq config": ("awq/config.json", _facts, 500),
    "config, loaded": ("whole/config.json", _loaded, 200),
    "awq config, loaded": ("awq/config.json", _loaded, 100),
    "config, through transformers": ("whole/config.json", Adapter.load, 30),
    "index": ("model/model.safetensors.index.json", Tensors, 400),
    "digests": ("listed/digests.json", verify_digests, 300),
    "generation": ("model/generation_config.json", lambda folder: fs.Sampling(**generation_defaults(folder)[0]), 500),
    "generation, loaded": ("model/generation_config.json", _loaded, 50),
    "tokenizer": ("model/tokenizer.json", _named, 400),
    "template": ("model/tokenizer_config.json", lambda folder: chat_prompt(folder, "w1"), 50),
    "weights": ("whole/model.safetensors", _loaded, 300),
    "exits": (f"model/{EXITS_FILE}", _exits, 250),
    "FlashHead": (f"model/{FILE}", _head(FlashHead, FILE), 200),
    "shortlist": ("model/fr_spec_head.safetensors", _head(ShortlistHead, "fr_spec_head.safetensors"), 250),
    "public FlashHead": ("public/config.json", test_heads_storage.read, 100),
}
assert sum(cases for *_, cases in CASES.values()) >= 5000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_spoiled_file_is_usable_or_refused_in_one_sentence(name, home):
    file, read, cases = CASES[name]
    path, outcomes = home / file, set()
    text = path.read_bytes()
    assert outcome(lambda: read(path.parent)) == "fine" or read is Adapter.load

    @settings(max_examples=cases)
    @given(spoiled(text, path.suffix == ".safetensors"))
    def check(changed):
        path.write_bytes(changed)
        outcomes.add(said := outcome(lambda: read(path.parent)))
        assert said.isprintable() and len(said) < 2000, said

    try:
        check()
    finally:
        path.write_bytes(text)
    assert len(outcomes) > min(cases, 60) // 6

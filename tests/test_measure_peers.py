"""Other engines as contestants: fixed token counts, same k, nothing of the caller's changed."""

import os
import sys

import pytest
import test_gguf
import torch
from shelf import refused

import flashspec as fs
from flashspec.decoding.lookup import LONGEST, SHORTEST, continuation
from flashspec.measure import llama, peers

PROMPT = (1, 2, 3)


def folder(root, layers):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(layers)
    config = transformers.Qwen3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.3,
        eos_token_id=list(range(48)),
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("peers")
    return peers.Peers(folder(root / "target", 2), folder(root / "draft", 1), torch.float32)


@pytest.mark.parametrize("k", [None, 1, 4])
def test_the_token_count_is_fixed_whatever_the_stop_tokens(pair, k):
    tokens = pair.greedy(PROMPT, 20, k)["tokens"]
    assert len(tokens) == 20 and tokens == pair.greedy(PROMPT, 20)["tokens"]
    assert min(tokens) < 48 and len(set(tokens)) > 3


def test_assisting_drafts_k_tokens_a_round(pair, monkeypatch):
    widths, forward = [], pair.target.forward

    def counting(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pair.target, "forward", counting)
    pair.greedy(PROMPT, 30, k=4)
    assert set(widths[1:8]) == {5}


def test_without_transformers_the_error_names_the_extra(monkeypatch, tmp_path):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    refused(r"flashspec\[peers\]", peers.Peers, tmp_path, tmp_path, torch.float32, error=ImportError)


class Sums:
    """A model as llama.cpp's driver sees one: the next token is a function of the text that its cache holds."""

    def __init__(self, wrong=0):
        self.held, self.wrong, self.batches = [], wrong, []

    def forget(self, length):
        del self.held[length:]

    def read(self, tokens, scored):
        best = []
        for token in tokens:
            self.held.append(token)
            best.append((sum(self.held) * 7 + len(self.held) + (self.wrong and len(self.held) % self.wrong == 0)) % 11)
        self.batches.append(len(tokens))
        return best[len(best) - scored :]


def greedy(ids, count):
    model, text = Sums(), list(ids)
    text += model.read(ids, 1)
    while len(text) < len(ids) + count:
        text += model.read(text[-1:], 1)
    return text[len(ids) :]


@pytest.mark.parametrize("how", ["plain", "draft", "lookup"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_llama_cpps_loop_gives_plain_decodings_text(how, k):
    target, draft, call = Sums(), Sums(wrong=3), {"ids": [1, 2, 1, 2], "tokens": 40, "how": how, "k": k}
    found = llama.decode(target, draft, call)
    assert found["tokens"] == greedy([1, 2, 1, 2], 40) and target.held == [1, 2, 1, 2, *found["tokens"]][:-1]
    assert found["rounds"] + found["accepted"] == 39 and max(target.batches[1:]) <= k + 1
    assert (found["drafted"] > 0) == (how != "plain") and found["accepted"] <= found["drafted"]
    assert how != "draft" or sum(draft.batches) < 2 * (40 + k * found["rounds"])  # its cache is kept between rounds
    assert llama.decode(target, draft, call)["tokens"] == found["tokens"]


def test_a_perfect_draft_is_accepted_whole_and_lookup_is_ours():
    found = llama.decode(Sums(), Sums(), {"ids": [3], "tokens": 41, "how": "draft", "k": 4})
    assert found["accepted"] == found["drafted"] == 32 and found["rounds"] == 8
    text = [5, 6, 7, 8, 9, 1, 6, 7, 2, 5, 6, 7]
    assert llama.looked_up(text, 3) == [8, 9, 1]
    assert llama.looked_up(text, 1) == continuation(torch.tensor(text), LONGEST, SHORTEST).tolist()
    assert llama.looked_up([1, 2, 3, 4], 3) == []


def test_llama_cpp_is_refused_in_words_where_it_is_missing_or_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(peers.PYTHON, raising=False)
    (file := tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused("make peer-llama", peers.Llama, file, None, 64, error=FileNotFoundError)
    monkeypatch.setenv(peers.PYTHON, sys.executable)
    refused("reads GGUF files, got folder", peers.Llama, tmp_path / "folder", None, 64)
    refused("ended without an answer", peers.Llama, file, None, 64)


@pytest.mark.skipif(not os.environ.get(peers.PYTHON), reason=f"needs llama-cpp-python: {peers.PYTHON}")
def test_llama_cpp_speculates_and_refuses_what_is_too_long(tmp_path):
    for name, layers in (("target", 3), ("draft", 1)):
        test_gguf.checkpoint(tmp_path / name / "m", family="qwen2", tied=False, layers=layers)
        test_gguf.exported(tmp_path / name / "m", tmp_path / f"{name}.gguf", "gguf")
    ids, target, draft = (5, 9, 5, 9, 5), tmp_path / "target.gguf", tmp_path / "draft.gguf"
    theirs, twice = peers.Llama(target, draft, 128), peers.Llama(target, target, 128)
    plain, found = theirs.greedy(ids, 40), twice.greedy(ids, 40, 4)
    assert plain["tokens"] == theirs.greedy(ids, 40, 4)["tokens"] == found["tokens"] != theirs.greedy((1, 2), 40)["tokens"]
    assert found["accepted"] == found["drafted"] > 20 and 0 < plain["prefill_seconds"] < 1
    assert fs.generate(fs.load(target), list(ids), "baseline", max_new_tokens=8, stop=()).tokens == plain["tokens"][:8]
    refused("give a shorter prompt", theirs.greedy, [7] * 500, 100)

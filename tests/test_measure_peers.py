"""transformers as a contestant: fixed token counts, same k, nothing of the caller's changed."""


import pytest
import torch

from flashspec.measure import peers

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
    return peers.Peers.load(folder(root / "target", 2), folder(root / "draft", 1), torch.float32)


@pytest.mark.parametrize("k", [None, 1, 4])
def test_the_token_count_is_fixed_whatever_the_stop_tokens(pair, k):
    tokens = pair.greedy(PROMPT, 20, k)
    assert len(tokens) == 20 and tokens == pair.greedy(PROMPT, 20)
    assert min(tokens) < 48 and len(set(tokens)) > 3


def test_assisting_drafts_k_tokens_a_round_and_restores_the_settings(pair, monkeypatch):
    before, widths, forward = pair.draft.generation_config.to_dict(), [], pair.target.forward

    def counting(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pair.target, "forward", counting)
    pair.greedy(PROMPT, 30, k=4)
    assert set(widths[1:8]) == {5} and pair.draft.generation_config.to_dict() == before


def test_without_transformers_the_error_names_the_extra(monkeypatch, tmp_path):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"flashspec\[peers\]"):
        peers.Peers.load(tmp_path, tmp_path, torch.float32)

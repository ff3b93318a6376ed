"""What a config.json leaves out is what transformers takes: the same logits for any of its fields given or not."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from shelf import refused
from test_checkpoint import WEIGHTS, tensors
from test_transformer import CASES, as_transformers, distance, randomised

from flashspec import Transformer
from flashspec.models.config import FAMILIES, Unsupported


@pytest.mark.parametrize("name", ["qwen3-gqa", "opt"])
def test_a_tied_checkpoint_with_a_head_of_its_own_is_read_as_transformers_reads_it(name, tmp_path):
    model = randomised(CASES[name])
    model.save(tmp_path, dtype="float32")
    tensors(lambda t: t.update({"lm_head.weight": model.embed.weight.detach().flip(0) + 0.1}))(tmp_path)
    ours, theirs = Transformer.load(tmp_path, dtype="float32"), as_transformers(tmp_path)
    assert not ours.config.tied and distance(ours, theirs) < 1e-4 and distance(model, theirs) > 1e-2


ROTATIONS = (
    {}, {"rope_type": "default"}, {"rope_theta": 5e4}, {"rope_type": "linear", "factor": 3.0}, {"type": "linear", "factor": 2},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 24},
    {"rope_type": "linear"}, {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "llama3", "factor": 2.0},
)  # fmt: skip


def written(family, dice):
    """A small config.json of a family from which any field that transformers can do without may be missing."""
    heads = {"qwen3": 32, "qwen2": 32, "mistral": 8}.get(family, 4)
    table = {"architectures": [FAMILIES[family]], "model_type": family, "vocab_size": 43, "hidden_size": 2 * heads}
    table |= {"num_hidden_layers": 2, "num_attention_heads": heads, "dtype": "float32", "bos_token_id": 5, "eos_token_id": [3, 4]}
    table |= {"tie_word_embeddings": dice.random() < 0.5, "max_position_embeddings": dice.choice((40, 100))}
    if family == "opt":
        return table | {"ffn_dim": 24, "enable_bias": dice.random() < 0.5, "word_embed_proj_dim": 2 * heads, "dropout": 0.0}
    table |= {"intermediate_size": 24, "num_key_value_heads": dice.choice((1, 2, heads)), "head_dim": dice.choice((4, 8))}
    table |= {"rms_norm_eps": dice.choice((1e-6, 1e-2)), "hidden_act": "silu", "rope_theta": dice.choice((1e4, 1e5))}
    table |= {"rope_scaling": dice.choice(ROTATIONS), "rope_parameters": dice.choice(ROTATIONS)}
    table |= {"attention_bias": dice.random() < 0.5, "mlp_bias": dice.random() < 0.5, "partial_rotary_factor": 1.0}
    table |= {"original_max_position_embeddings": 16, "sliding_window": dice.choice((16, None))}
    if family.startswith("qwen"):
        table |= {"use_sliding_window": dice.random() < 0.5, "max_window_layers": dice.choice((0, 1, 2))}
    return table


NEEDED = ("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "dtype")  # fmt: skip


def thinned(family, seed):
    dice = random.Random(f"{family} {seed}")
    table = written(family, dice)
    scarce = {"original_max_position_embeddings", "rope_scaling", "rope_parameters"}
    return {key: value for key, value in table.items() if key in NEEDED or dice.random() < (0.3 if key in scarce else 0.5)}


def theirs_of(folder, table):
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(table))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    tied = model.config.tie_word_embeddings
    found = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight" or not tied}
    save_file(found, folder / WEIGHTS, {"format": "pt"})
    return model


@torch.inference_mode()
def gap(ours, theirs):
    ids = torch.randint(0, 43, (1, min(ours.config.context, 90)), generator=torch.Generator().manual_seed(1))
    wanted = theirs(ids).logits
    return ((ours(ids) - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(family, tmp_path):
    compared, limits = 0, set()
    for seed in range(60):
        place, table = tmp_path / str(seed), thinned(family, seed)
        try:
            theirs = theirs_of(place, table)
        except KeyError:
            refused("has no", Transformer.load, place)
            continue
        try:
            ours = Transformer.load(place, dtype="float32")
        except Unsupported as error:
            assert "yarn" in str(error)
            continue
        found, window = theirs.config, getattr(theirs.config, "sliding_window", None)
        slides = window and (not family.startswith("qwen") or "sliding_attention" in found.layer_types)
        assert ours.config.context == min(found.max_position_embeddings, window if slides else 10**9), table
        stops = found.eos_token_id
        assert ours.config.eos == (() if stops is None else tuple(stops) if isinstance(stops, list) else (stops,))
        assert gap(ours, theirs) < 1e-4, table
        compared, limits = compared + 1, limits | {ours.config.context}
    assert compared > 30 and len(limits) > 1


def test_another_default_would_be_caught(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    table, others = written("llama", random.Random(0)) | {"rope_scaling": rope}, ("original_max", "sliding", "rope_parameters")
    theirs = theirs_of(tmp_path / "m", {key: value for key, value in table.items() if not key.startswith(others)})
    ours = Transformer.load(tmp_path / "m", dtype="float32")
    other = Transformer(replace(ours.config, rope=replace(ours.config.rope, original_context=8192))).eval()
    other.load_state_dict(ours.state_dict())
    assert gap(ours, theirs) < 1e-4 < 1e-3 < gap(other, theirs)

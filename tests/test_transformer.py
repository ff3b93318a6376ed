"""Our transformer computes what transformers computes, for every field that a config.json has or leaves out."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from shelf import refused, refusing

from flashspec import Models, Transformer, generate
from flashspec.models.config import FAMILIES, ModelConfig, RopeScaling, Unsupported, from_hf, to_hf

BASE = ModelConfig(
    family="qwen3", vocab_size=97, hidden=48, ffn=80, layers=2, heads=4, kv_heads=2, head_dim=12, context=256, eos=(3,)
)
LLAMA3 = RopeScaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
CASES = {
    "qwen3-gqa": BASE,
    "qwen3-wide-heads": replace(BASE, head_dim=32, hidden=40, tied=False, attention_bias=True),
    "llama-gqa": replace(BASE, family="llama", tied=False, vocab_size=131),
    "llama-linear": replace(BASE, family="llama", rope=RopeScaling("linear", factor=2.5), kv_heads=1, head_dim=8, layers=3),
    "qwen2-biased": replace(BASE, family="qwen2"),
    "mistral": replace(BASE, family="mistral", tied=False, head_dim=16),
    "opt": replace(BASE, family="opt", kv_heads=4, norm_eps=1e-5, attention_bias=True, mlp_bias=True),
    "llama-llama3": replace(BASE, family="llama", rope=LLAMA3, heads=6, kv_heads=3, tied=False, eos=(3, 5)),
    "edge": replace(BASE, family="llama", vocab_size=17, hidden=3, ffn=5, layers=1, heads=1, kv_heads=1, head_dim=2, tied=False),
    "odd": replace(BASE, vocab_size=131, hidden=18, ffn=24, layers=3, heads=6, kv_heads=3, head_dim=6, norm_eps=1e-3),
}
LENGTHS = (1, 2, 90)
GREEDY = ("edge", "odd", "opt", "qwen2-biased", "llama-llama3")


def randomised(config, seed=0):
    dice = torch.Generator().manual_seed(seed)
    model = Transformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            centre = 1.0 if weight.ndim == 1 and weight.mean() == 1 else 0.0
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=dice))
    return model


def prompt(config, length):
    return torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def distance(ours, theirs, lengths=LENGTHS):
    worst = 0.0
    for length in lengths:
        ids = prompt(ours.config, length)
        wanted = theirs(ids).logits
        worst = max(worst, ((ours(ids) - wanted).abs().max() / wanted.abs().max()).item())
    return worst


def as_transformers(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_we_save_and_gives_our_logits(name, tmp_path):
    model = randomised(CASES[name])
    model.save(tmp_path, dtype="float32")
    assert distance(model, as_transformers(tmp_path)) < 1e-4


WRONG = {
    "theta": {"rope_theta": 2e4}, "llama3": {"rope": LLAMA3},
    "linear": {"rope": RopeScaling("linear", factor=2.0)}, "eps": {"norm_eps": 1e-2},
    "llama-llama3": {"rope": replace(LLAMA3, original_context=8192)},
}  # fmt: skip


@pytest.mark.parametrize("wrong", [*WRONG, "opt", "qwen2-biased"])
def test_a_wrong_configuration_or_weights_in_another_order_are_caught(wrong, tmp_path):
    model = randomised(CASES.get(wrong, BASE))
    model.save(tmp_path, dtype="float32")
    other = Transformer(replace(model.config, **WRONG.get(wrong, {}))).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    if wrong not in WRONG:
        moved = other.positions.weight if other.positions is not None else other.blocks[0].attention.qkv.bias
        moved.copy_(moved.roll(1, 0))
    assert distance(other, as_transformers(tmp_path)) > 1e-3


def test_sharded_and_whole_folders_hold_the_same_model(tmp_path):
    model = randomised(CASES["llama-gqa"])
    model.save(tmp_path / "whole", dtype="float32")
    model.save(tmp_path / "sharded", dtype="float32", shard_bytes=20_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert all(path.stat().st_size < 48_000 for path in (tmp_path / "sharded").glob("*.safetensors"))
    ids = prompt(model.config, 7)
    with torch.inference_mode():
        logits = [Transformer.load(tmp_path / kind)(ids) for kind in ("whole", "sharded")]
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], model(ids))
    assert distance(model, as_transformers(tmp_path / "sharded")) < 1e-4
    model = randomised(BASE).bfloat16()
    model.save(tmp_path / "narrow")
    again = Transformer.load(tmp_path / "narrow")
    assert again.norm.weight.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_text_is_the_text_of_transformers_generate(name, tmp_path):
    model = randomised(replace(CASES[name], eos=()))
    model.save(tmp_path, dtype="float32")
    ids = prompt(model.config, 9)[:1]
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = as_transformers(tmp_path).generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, 9:].tolist()
    draft = Transformer(replace(model.config, layers=1)).eval().requires_grad_(False)
    draft.load_state_dict({key: value for key, value in model.state_dict().items() if key in draft.state_dict()})
    models = Models(model.requires_grad_(False), draft)
    for method in ("baseline", "dense"):
        assert generate(models, ids[0].tolist(), method, max_new_tokens=24, stop=()).tokens == wanted
    others = [generate(models, [*ids[0].tolist(), end], "baseline", max_new_tokens=24, stop=()).tokens for end in (1, 2)]
    assert name != "opt" or others[0] != others[1]  # the control: another prompt has another text


OPT = to_hf(CASES["opt"])
test_what_we_do_not_compute_is_refused_in_words = refusing([
    (lambda: from_hf({"architectures": ["MambaForCausalLM"]}), "'MambaForCausalLM' is not supported"),
    (lambda: from_hf(to_hf(BASE) | {"hidden_act": "gelu"}), "hidden_act = 'gelu'"),
    (lambda: from_hf(to_hf(BASE) | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}), "rope scaling 'yarn'"),
    (lambda: from_hf(to_hf(BASE) | {"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    (lambda: from_hf(OPT | {"word_embed_proj_dim": 8}), "word_embed_proj_dim = 8"),
    (lambda: from_hf(OPT | {"do_layer_norm_before": False}), "do_layer_norm_before = False"),
    (lambda: from_hf(OPT | {"activation_function": "gelu"}), "activation_function = 'gelu'"),
], Unsupported)  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3-gqa", "opt"])
def test_a_tied_checkpoint_with_a_head_of_its_own_is_read_as_transformers_reads_it(name, tmp_path):
    model = randomised(CASES[name])
    model.save(tmp_path, dtype="float32")
    head = {"lm_head.weight": model.embed.weight.detach().flip(0) + 0.1}
    save_file(load_file(tmp_path / WEIGHTS) | head, tmp_path / WEIGHTS, {"format": "pt"})
    ours, theirs = Transformer.load(tmp_path, dtype="float32"), as_transformers(tmp_path)
    assert not ours.config.tied and distance(ours, theirs) < 1e-4 and distance(model, theirs) > 1e-2


WEIGHTS = "model.safetensors"
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


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(family, tmp_path):
    compared, limits = 0, set()
    scarce = {"original_max_position_embeddings", "rope_scaling", "rope_parameters"}
    for seed in range(60):
        place, dice = tmp_path / str(seed), random.Random(f"{family} {seed}")
        whole = written(family, dice)
        table = {k: v for k, v in whole.items() if k in NEEDED or dice.random() < (0.3 if k in scarce else 0.5)}
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
        assert distance(ours, theirs, [min(ours.config.context, 90)]) < 1e-4, table
        compared, limits = compared + 1, limits | {ours.config.context}
    assert compared > 30 and len(limits) > 1

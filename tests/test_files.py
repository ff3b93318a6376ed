"""What a folder from outside may hold: read as transformers reads it, or refused by file and field before anything is made."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import DOWN, UNTIED, WEIGHTS, edit_config, edit_tensors
from test_transformer import CASES, as_transformers, distance, randomised

from flashspec.models.config import FAMILIES, Unsupported
from flashspec.models.transformer import Transformer

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    randomised(UNTIED).save(tmp_path / "model", dtype="float32")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    """The one sentence with which a folder is refused, before any weight is made."""
    began = time.perf_counter()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Transformer.load(folder)
    assert time.perf_counter() - began < 5 and "\n" not in str(refused.value)
    return str(refused.value)


FIELDS = {
    "a string for a number": ({"hidden_size": "16"}, "hidden_size holds '16', expected int"),
    "null for a number": ({"num_hidden_layers": None}, "num_hidden_layers holds None, expected int"),
    "less than nothing": ({"hidden_size": -1}, "hidden_size holds -1, expected int >= 1"),
    "half a row": ({"hidden_size": 16.5}, "hidden_size holds 16.5, expected int"),
    "no heads": ({"num_key_value_heads": 0}, "num_key_value_heads holds 0, expected int >= 1"),
    "a number with 4,000 digits": ({"vocab_size": 10**4000}, "vocab_size holds 1000"),
    "a list for an object": ({"rope_parameters": []}, "rope_parameters holds [], expected object | null"),
    "a theta that is none": ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_parameters.rope_theta holds nan"),
    "a scaling without a factor": ({"rope_scaling": {"type": "linear"}}, "rope scaling 'linear' has no factor"),
    "a word for a quantisation": ({"quantization_config": "awq"}, "quantization_config holds 'awq', expected object"),
    "a word for a truth": ({"tie_word_embeddings": "no"}, "tie_word_embeddings holds 'no', expected bool"),
    "a word for an id": ({"eos_token_id": "</s>"}, "eos_token_id holds '</s>', expected int | array | null"),
    "a word among ids": ({"eos_token_id": [1, "</s>"]}, "eos_token_id[1] holds '</s>', expected int"),
    "a number for a name": ({"architectures": [7]}, "architectures[0] holds 7, expected str"),
    "heads that cannot be halved": ({"head_dim": 11}, "rotary heads need an even width, got 11"),
    "more keys than queries": ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads evenly"),
    "fifty thousand layers": ({"num_hidden_layers": 50_000}, "model.layers.2.input_layernorm.weight is missing"),
    "a million layers": ({"num_hidden_layers": 10**6}, "GB of cpu memory"),
    "a billion positions": ({"max_position_embeddings": 10**9}, "GB of cpu memory"),
    "a billion words": ({"vocab_size": 10**9}, "GB of cpu memory"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_config_that_cannot_be_is_refused_by_its_field(name: str, folder: Path) -> None:
    changes, words = FIELDS[name]
    edit_config(**changes)(folder)
    said = refusal(folder)
    assert words in said and (str(folder) in said)


NESTED = "[" * 100_000
TEXTS = {
    "config.json nested deeply": ("config.json", NESTED, "config.json is not valid JSON"),
    "config.json of a list": ("config.json", "[1]", "config.json: the whole file holds [1], expected object"),
    "config.json that is not UTF-8": ("config.json", b"\xff\xfe\xfa", "config.json is not valid JSON"),
    "digests of a list": ("digests.json", "[1]", "digests.json: the whole file holds [1], expected object"),
    "digests that are none": ("digests.json", '{"config.json": "abc"}', "expected str matching regex"),
    "digests from outside": ("digests.json", json.dumps({"../x": "0" * 64}), "'../x', which lies outside its folder"),
    "generation of a list": ("generation_config.json", "[]", "generation_config.json: the whole file holds []"),
    "generation that stops at a word": ("generation_config.json", '{"eos_token_id": "."}', "eos_token_id holds '.'"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_cannot_be_is_refused_by_its_name(name: str, folder: Path) -> None:
    file, text, words = TEXTS[name]
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refusal(folder)


def sharded(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    """Write the model in shards, with a change to its index."""
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)
    raw = json.loads((folder / INDEX).read_text())
    table = change(raw["weight_map"])
    (folder / INDEX).write_text(json.dumps(raw | {"weight_map": raw["weight_map"] if table is None else table}))


OUTSIDE = ("../outside.safetensors", "{home}/outside.safetensors", "sub/../../outside.safetensors", "..\\outside.safetensors",
           "C:\\outside.safetensors", "link/outside.safetensors", "link.safetensors", "a\0b", "n" * 300, "\ud800")  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_outside_their_folder_are_refused(name: str, folder: Path) -> None:
    home = folder.parent
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(home)
    (folder / "link.safetensors").symlink_to(home / "outside.safetensors")
    sharded(folder, lambda table: table.update({DOWN: name.format(home=home)}))
    save_file({DOWN: torch.zeros(48, 80)}, home / "outside.safetensors")
    assert "which lies outside its folder" in refusal(folder)


@pytest.mark.parametrize("table", [[], {}, {DOWN: 3}, None, "model"])
def test_an_index_of_nothing_is_refused(table: Any, folder: Path) -> None:
    sharded(folder, lambda found: table if table is not None else 0)
    assert f"{INDEX}: weight_map" in refusal(folder)


def test_links_of_a_hubs_cache_are_followed(folder: Path) -> None:
    """The control: a snapshot whose files are links to the blobs beside it is a folder like any other."""
    sharded(folder, lambda table: None)
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots" / "main"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert Transformer.load(snapshot).config == UNTIED
    assert Path(blobs.rename(folder)).is_dir()


@pytest.mark.parametrize("kind", [torch.bool, torch.complex64, torch.int32, torch.uint8])
def test_weights_that_are_no_floating_point_numbers_are_refused(kind: torch.dtype, folder: Path) -> None:
    edit_tensors(lambda t: t.update({DOWN: t[DOWN].to(kind)}))(folder)
    assert f"tensor {DOWN}" in (said := refusal(folder)) and "numbers, expected" in said


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_any_floating_point_numbers_are_read(kind: torch.dtype, folder: Path) -> None:
    edit_tensors(lambda t: t.update({DOWN: t[DOWN].to(kind)}))(folder)
    assert Transformer.load(folder).config == UNTIED


@pytest.mark.parametrize("name", ["qwen3-gqa", "llama-mha-tied", "qwen2-biased", "opt"])
def test_a_tied_checkpoint_with_a_head_of_its_own_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    model = randomised(CASES[name])
    model.save(tmp_path, dtype="float32")
    edit_tensors(lambda t: t.update({"lm_head.weight": model.embed.weight.detach().flip(0) + 0.1}))(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, {"format": "pt"})
    ours, theirs = Transformer.load(tmp_path, dtype="float32"), as_transformers(tmp_path)
    assert not ours.config.tied and distance(ours, theirs) < 1e-4
    assert distance(model, theirs) > 1e-2


ROTATIONS = (
    {}, {"rope_type": "default"}, {"rope_theta": 5e4}, {"rope_type": "linear", "factor": 3.0}, {"type": "linear", "factor": 2},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 24},
    {"rope_type": "linear"}, {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "llama3", "factor": 2.0},
)  # fmt: skip


def written(family: str, dice: random.Random) -> dict[str, Any]:
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


def thinned(family: str, seed: int) -> dict[str, Any]:
    dice = random.Random(f"{family} {seed}")
    table = written(family, dice)
    scarce = {"original_max_position_embeddings", "rope_scaling", "rope_parameters"}
    return {key: value for key, value in table.items() if key in NEEDED or dice.random() < (0.3 if key in scarce else 0.5)}


def theirs_of(folder: Path, table: dict[str, Any]) -> torch.nn.Module:
    """transformers' model of a config.json, random, its weights saved beside it."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(table))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if name != "lm_head.weight" or not model.config.tie_word_embeddings}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return model


@torch.inference_mode()
def gap(ours: Transformer, theirs: torch.nn.Module) -> float:
    """The largest difference of logits relative to the largest logit, as far as our context goes."""
    ids = torch.randint(0, 43, (1, min(ours.config.context, 90)), generator=torch.Generator().manual_seed(1))
    wanted = theirs(ids).logits
    return ((ours(ids) - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(family: str, tmp_path: Path) -> None:
    compared, limits = 0, set()
    for seed in range(60):
        place, table = tmp_path / str(seed), thinned(family, seed)
        try:
            theirs = theirs_of(place, table)
        except KeyError:
            with pytest.raises(ValueError, match="has no"):
                Transformer.load(place)
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


def test_another_default_would_be_caught(tmp_path: Path) -> None:
    """The control: with llama3's usual 8192 in the place of the model's own context, the logits are others."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    table, others = written("llama", random.Random(0)) | {"rope_scaling": rope}, ("original_max", "sliding", "rope_parameters")
    theirs = theirs_of(tmp_path / "m", {key: value for key, value in table.items() if not key.startswith(others)})
    ours = Transformer.load(tmp_path / "m", dtype="float32")
    other = Transformer(replace(ours.config, rope=replace(ours.config.rope, original_context=8192))).eval()
    other.load_state_dict(ours.state_dict())
    assert gap(ours, theirs) < 1e-4 < 1e-3 < gap(other, theirs)

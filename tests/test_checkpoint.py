"""A folder that is not exactly the model it claims to be is refused by file and field, before any weight is made."""

import json
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from shelf import listing, refused
from test_transformer import BASE, randomised

from flashspec import FlashHead, Transformer
from flashspec.models.folder import verify_digests
from flashspec.models.writing import write_digests

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UNTIED = replace(BASE, tied=False)
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    randomised(UNTIED).save(tmp_path / "model", dtype="float32")
    return tmp_path / "model"


def later(change):
    return lambda *told, **named: lambda folder: change(folder, *told, **named)


@later
def tensors(folder, change):
    found = load_file(folder / WEIGHTS)
    change(found)
    save_file(found, folder / WEIGHTS, {"format": "pt"})


@later
def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@later
def text(folder, file, content):
    new = content((folder / file).read_bytes()) if callable(content) else content
    (folder / file).write_bytes(new if isinstance(new, bytes) else new.encode())


@later
def without(folder, file, *first):
    for change in first:
        change(folder)
    (folder / file).unlink()


@later
def listed(folder, spoil):
    (folder / "tokenizer.json").write_text("{}")
    write_digests(folder)
    spoil(folder)


def shards(folder):
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)


@later
def second_shard(folder, change):
    shards(folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    left = change(shard.read_bytes())
    shard.write_bytes(left) if left else shard.unlink()


@later
def index(folder, change):
    shards(folder)
    raw = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(raw | {"weight_map": change(raw["weight_map"])}))


KINDS = {str(kind): kind for kind in (torch.bool, torch.complex64, torch.int32, torch.uint8)}
NO_FIELD = '{"architectures": ["LlamaForCausalLM"]}'
SPOILED = {
    "no folder": (lambda folder: folder.rename(folder.with_name("moved")), "there is no checkpoint folder"),
    "no config": (without("config.json"), "config.json is missing"),
    "bad json": (text("config.json", "{"), "not valid JSON"),
    "no field": (text("config.json", NO_FIELD), "has no"),
    "missing tensor": (tensors(lambda t: t.pop(DOWN)), f"{DOWN} is missing"),
    "extra tensor": (tensors(lambda t: t.update(extra=torch.ones(1))), "tensor .extra. .* not part of the model"),
    "one layer too many": (config(num_hidden_layers=1), "model.layers.1.* not part of the model"),
    "shape": (tensors(lambda t: t.update({DOWN: torch.ones(3, 4)})), rf"{DOWN} .* shape \[3, 4\]"),
    "truncated": (text(WEIGHTS, lambda raw: raw[:-100]), "truncated or not a safetensors file"),
    "missing shard": (second_shard(lambda raw: b""), "model-00002-of-.* named in the index but missing"),
    "corrupt shard": (second_shard(lambda raw: raw[:9] + bytes(64) + raw[73:]), "model-00002-of-.* truncated .*fetch it again"),
    "shard without its tensor": (index(lambda table: table | {DOWN: min({*table.values()} - {table[DOWN]})}),
                                 f"tensor .{DOWN}. is not in .*, where the index puts it"),
    **{f"an index of {wrong!r}": (index(lambda _, wrong=wrong: wrong), f"{INDEX}: weight_map")
       for wrong in ([], {DOWN: 3}, "model")},
    "pickle": (without(WEIGHTS, text("pytorch_model.bin", "")), "pickled weights are never read"),
    "digest": (listed(text(WEIGHTS, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))), "has SHA-256 .* digests.json expects"),
    "listed file": (listed(without("tokenizer.json")), "tokenizer.json is listed in digests.json but missing"),
    "a string for a number": (config(hidden_size="16"), "hidden_size holds '16', expected int"),
    "no heads": (config(num_key_value_heads=0), "num_key_value_heads holds 0, expected int >= 1"),
    "a number with 4,000 digits": (config(vocab_size=10**4000), "vocab_size holds 1000"),
    "a theta that is none": (config(rope_parameters={"rope_theta": float("nan")}), "rope_parameters.rope_theta holds nan"),
    "a scaling without a factor": (config(rope_scaling={"type": "linear"}), "rope scaling 'linear' has no factor"),
    "heads that cannot be halved": (config(head_dim=11), "rotary heads need an even width, got 11"),
    "fifty thousand layers": (config(num_hidden_layers=50_000), "model.layers.2.input_layernorm.weight is missing"),
    "a million layers": (config(num_hidden_layers=10**6), "GB of cpu memory"),
    "config.json nested deeply": (text("config.json", "[" * 100_000), "config.json is not valid JSON"),
    "digests from outside": (text("digests.json", json.dumps({"../x": "0" * 64})), "'../x', which lies outside its folder"),
    **{name: (tensors(lambda t, kind=kind: t.update({DOWN: t[DOWN].to(kind)})), f"tensor {DOWN}.* numbers, expected")
       for name, kind in KINDS.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_refused_by_what_is_wrong_and_left_as_it_was(name, folder):
    spoil, words = SPOILED[name]
    spoil(folder)
    before = listing(folder.parent)
    said = refused(".", Transformer.load, folder, error=(ValueError, FileNotFoundError))
    assert str(folder) in said or "quantization_config" in said or "architecture" in said
    assert (words in said or re.search(words, said)) and listing(folder.parent) == before


OUTSIDE = ("../outside.safetensors", "{home}/outside.safetensors", "sub/../../outside.safetensors", "..\\outside.safetensors",
           "C:\\outside.safetensors", "link/outside.safetensors", "link.safetensors", "a\0b", "n" * 300, "\ud800")  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_outside_their_folder_are_refused(name, folder):
    home = folder.parent
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(home)
    (folder / "link.safetensors").symlink_to(home / "outside.safetensors")
    index(lambda table: table | {DOWN: name.format(home=home)})(folder)
    save_file({DOWN: torch.zeros(48, 80)}, home / "outside.safetensors")
    refused("which lies outside its folder", Transformer.load, folder)


def test_links_of_a_hubs_cache_are_followed(folder):
    shards(folder)
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots" / "main"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert Transformer.load(snapshot).config == UNTIED


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_a_sound_folder_of_any_floating_point_numbers_is_read(kind, folder):
    tensors(lambda t: t.update({DOWN: t[DOWN].to(kind)}))(folder)
    write_digests(folder)
    verify_digests(folder)
    assert Transformer.load(folder).config == UNTIED
    text("generation_config.json", '{"eos_token_id": [7, 9]}')(folder)
    assert Transformer.load(folder).config.eos == (7, 9)
    randomised(BASE).save(folder, dtype="float32")  # a tied checkpoint may repeat its head
    tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(folder)
    assert Transformer.load(folder).head is None


def test_an_interrupted_save_of_a_model_or_a_head_leaves_the_old_one(folder, monkeypatch):
    head = FlashHead.build(torch.eye(64))
    head.save(folder)
    before, whole, calls = listing(folder), safetensors.torch.save_file, []

    def torn(tensors, path, metadata):
        calls.append(path)
        if len(calls) > 1:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        whole(tensors, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", torn)
    for save in (lambda: randomised(UNTIED, seed=1).save(folder, "float32", shard_bytes=20_000), lambda: head.save(folder)):
        with pytest.raises(KeyboardInterrupt):
            save()
        assert listing(folder) == before and len(calls) > 1


def test_a_second_save_leaves_nothing_of_the_first(folder):
    model = randomised(UNTIED, seed=1)
    model.save(folder, dtype="float32", shard_bytes=20_000)
    write_digests(folder)
    model.save(folder, dtype="float32")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    again = Transformer.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

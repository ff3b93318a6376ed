"""A folder that is not exactly the model it claims to be is refused in one sentence that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_transformer import BASE, randomised

from flashspec.models import checkpoint
from flashspec.models.folder import verify_digests
from flashspec.models.transformer import Transformer
from flashspec.train.package import write_digests

WEIGHTS = "model.safetensors"
UNTIED = replace(BASE, tied=False)
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    randomised(UNTIED).save(tmp_path, dtype="float32")
    return tmp_path


def edit_tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def edit_config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def drop_shard(folder: Path) -> None:
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def corrupt_shard(folder: Path) -> None:
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:9] + bytes(64) + data[73:])


def shorten_shard(folder: Path) -> None:
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-4])


def misplace(folder: Path) -> None:
    randomised(UNTIED).save(folder, dtype="float32", shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    table["weight_map"][DOWN] = sorted(set(table["weight_map"].values()) - {table["weight_map"][DOWN]})[0]
    path.write_text(json.dumps(table))


def pickle_only(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def flip_a_byte(folder: Path) -> None:
    write_digests(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def drop_a_listed_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    write_digests(folder)
    (folder / "tokenizer.json").unlink()


SPOILED = {
    "no folder": (lambda folder: folder.rename(folder.with_name("moved")), "there is no checkpoint folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "bad json": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no field": (lambda folder: (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'), "has no"),
    "architecture": (edit_config(architectures=["MambaForCausalLM"]), "MambaForCausalLM.* not supported"),
    "missing tensor": (edit_tensors(lambda t: t.pop(DOWN)), f"{DOWN} is missing"),
    "missing head": (edit_tensors(lambda t: t.pop("lm_head.weight")), "lm_head.weight is missing"),
    "extra tensor": (edit_tensors(lambda t: t.update(extra=torch.ones(1))), "tensor .extra. .* not part of the model"),
    "one layer too many": (edit_config(num_hidden_layers=1), "model.layers.1.* not part of the model"),
    "shape": (edit_tensors(lambda t: t.update({DOWN: torch.ones(3, 4)})), rf"{DOWN} .* shape \[3, 4\]"),
    "ratio": (edit_config(num_key_value_heads=4), "k_proj.weight .* has shape"),
    "truncated": (truncate, "truncated or not a safetensors file"),
    "missing shard": (drop_shard, "model-00002-of-.* named in the index but missing"),
    "corrupt shard": (corrupt_shard, "model-00002-of-.* truncated or not a safetensors file .*fetch it again"),
    "short shard": (shorten_shard, "model-00002-of-.* truncated or not a safetensors file .*fetch it again"),
    "shard without its tensor": (misplace, f"tensor .{DOWN}. is not in .*, where the index puts it"),
    "pickle": (pickle_only, "pickled weights are never read"),
    "digest": (flip_a_byte, "has SHA-256 .* digests.json expects"),
    "listed file": (drop_a_listed_file, "tokenizer.json is listed in digests.json but missing"),
    "gptq": (edit_config(quantization_config={"quant_method": "gptq", "bits": 4}), "quant_method = 'gptq'"),
    "8 bits": (edit_config(quantization_config={"quant_method": "awq", "bits": 8}), "bits = 8"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_refused_in_one_sentence(name: str, folder: Path) -> None:
    spoil, message = SPOILED[name]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        Transformer.load(folder)
    assert "\n" not in str(refused.value)


def test_an_unspoiled_folder_is_not_refused(folder: Path) -> None:
    write_digests(folder)
    verify_digests(folder)
    assert Transformer.load(folder).config == UNTIED


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"dtype": "int3"}, "dtype 'int3'"), ({"weights": "int4"}, "no 4-bit weights"), ({"weights": "w"}, "not one of")],
)
def test_an_impossible_choice_is_refused(choice: dict, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer.load(folder, **choice)


def test_a_tied_checkpoint_may_repeat_its_head(tmp_path: Path) -> None:
    randomised(BASE).save(tmp_path, dtype="float32")
    edit_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(tmp_path)
    assert Transformer.load(tmp_path).head is None


def test_stop_tokens_of_the_generation_config_win(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert Transformer.load(folder).config.eos == (7, 9)


def test_an_interrupted_save_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls: list[Path] = []

    def interrupt(tensors: dict, path: Path, facts: dict) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        path.write_bytes(b"half")

    monkeypatch.setattr(checkpoint, "write_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        randomised(UNTIED, seed=1).save(folder, dtype="float32", shard_bytes=20_000)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_second_save_leaves_nothing_of_the_first(folder: Path) -> None:
    model = randomised(UNTIED, seed=1)
    model.save(folder, dtype="float32", shard_bytes=20_000)
    write_digests(folder)
    model.save(folder, dtype="float32")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    again = Transformer.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

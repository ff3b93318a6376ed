"""Models that cannot be loaded, or not together, are refused in one sentence; padding is cut."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import shelf
import tiny
import torch
from shelf import refused
from torch import nn

import flashspec as fs
from flashspec import Models, Sampling, generate, load


@pytest.fixture
def copy(folders, tmp_path):
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items() if name != "prompts"}


@pytest.mark.parametrize(("options", "word"), [
    ({"dtype": "float8"}, "auto, float32, bfloat16"),
    ({"weights": "int3"}, "auto, int4, dense"),
    ({"weights": "int4"}, "no 4-bit weights"),
    ({"device": "cuda:99"}, "'cuda:99'"),
    ({"device": "gpu"}, "use auto, cpu or cuda"),
])  # fmt: skip
def test_a_way_of_loading_that_is_not_there_is_refused(folders, options, word):
    refused(word, fs.load, str(folders["target"]), None, **{"device": "cpu", **options})


def spoil_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    (folder / "digests.json").unlink()


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize(("text", "word"), [("{", "not valid JSON"), ('{"version": "1.0"}', "has no model")])
def test_a_damaged_tokenizer_is_refused_by_its_file(copy, which, text, word):
    spoil_tokenizer(copy[which], text)
    refused(f"{copy[which] / 'tokenizer.json'}.*{word}.*copy the file again", pair, copy)


def test_only_the_tokenizer_of_the_target_is_run(copy):
    raw = json.loads((copy["target"] / "tokenizer.json").read_text())
    unknown = json.dumps(raw | {"model": raw["model"] | {"type": "Hope"}})
    spoil_tokenizer(copy["draft"], unknown)
    assert pair(copy).encode("x")
    spoil_tokenizer(copy["target"], unknown)
    refused("copy the file again", pair, copy)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_tokenizer_that_is_missing_is_said_when_it_is_needed(copy, which):
    (copy[which] / "tokenizer.json").unlink()
    (copy[which] / "digests.json").unlink()
    alone = pair(copy)
    assert len(fs.generate(alone, [3, 1, 4], "dense", max_new_tokens=4, stop=()).tokens) == 4
    if which == "target":
        refused("no tokenizer.json.*as token ids", fs.generate, alone, "def f(x):", "dense")


def test_a_draft_bigger_than_its_target_is_refused_and_one_as_big_is_not(folders):
    swapped = {"target": folders["draft"], "draft": folders["target"]}
    refused("the draft is bigger than its target.*swap them", pair, swapped)
    assert pair({"target": folders["target"], "draft": folders["target"]}).draft is not None


PROMPT = [3, 1, 4, 1, 5]
EXTRA = {"target": {"target": 24}, "draft": {"draft": 24}, "both": {"target": 40, "draft": 8}}


def padded(model, rows):
    for module in (model.embed, model.head):
        weight = module.weight.detach()
        module.weight = nn.Parameter(torch.cat([weight, 50 * weight[:rows]])[: tiny.VOCAB + rows])
    model.config = replace(model.config, vocab_size=tiny.VOCAB + rows)
    return model


def written(home, extra):
    home.mkdir(parents=True, exist_ok=True)
    folders = shelf.write_pair(home)
    for role, rows in extra.items():
        padded(tiny.pair().model(role), rows).save(folders[role], "float32")
        (folders[role] / "digests.json").unlink(missing_ok=True)
        (folders[role] / "tokenizer.json").write_bytes((home / "tokenizer.json").read_bytes())
    return folders


def pair(folders):
    return load(folders["target"], folders["draft"], dtype="float32", device="cpu")


def text(models, method, temperature=0.0):
    options = {"max_new_tokens": 20, "stop": ()} | ({"probes": 4} if method == "flash" else {})
    return generate(models, PROMPT, method, Sampling(temperature, seed=3), **options).tokens


@pytest.mark.parametrize("who", EXTRA)
def test_padding_of_different_sizes_changes_no_text(who, tmp_path):
    plain, cut = pair(written(tmp_path / "plain", {})), pair(written(tmp_path / "padded", EXTRA[who]))
    size = tiny.VOCAB + min(EXTRA[who].get(role, 0) for role in ("target", "draft"))
    assert {model.config.vocab_size for model in (cut.target, cut.draft)} == {size} and plain.cut == ()
    for temperature in (0.0, 0.7):
        texts = {method: text(cut, method, temperature) for method in ("baseline", "dense", "flash")}
        assert texts["dense"] == texts["flash"] == texts["baseline"]
        if who != "both":
            assert texts["baseline"] == text(plain, "baseline", temperature)


def test_the_control_padding_that_is_not_cut_is_written(tmp_path):
    alone = load(written(tmp_path, EXTRA["target"])["target"], None, dtype="float32", device="cpu")
    assert max(text(alone, "baseline")) >= tiny.VOCAB


def test_a_stored_head_of_the_whole_weight_is_left_aside(tmp_path):
    folders = written(tmp_path, EXTRA["draft"])
    load(folders["draft"], folders["draft"], dtype="float32", device="cpu").head("draft", "flash").save(folders["draft"])
    cut = pair(folders)
    assert cut.cut == ("draft",) and cut.head("draft", "flash").vocab_size == tiny.VOCAB


def test_a_model_that_transformers_reads_is_cut_too(tmp_path):
    pytest.importorskip("transformers")
    from flashspec.models.adapter import Adapter

    folders, plain = written(tmp_path / "padded", EXTRA["target"]), pair(written(tmp_path / "plain", {}))
    for hidden in (True, False):
        model = Adapter.load(folders["target"], "float32")
        model.head_weight = model.head_weight if hidden else None
        model.cut_vocabulary(tiny.VOCAB)
        assert model.width == (model.config.hidden if hidden else tiny.VOCAB)
        assert text(Models(model, plain.draft), "dense") == text(plain, "baseline")


def test_rows_without_a_tokenizer_to_explain_them(tmp_path):
    folders, short = written(tmp_path / "long", EXTRA["target"]), written(tmp_path / "short", {"draft": -20})
    words = r"different vocabularies \(512 and 536 ids\); use two models that share one tokenizer"
    (folders["target"] / "tokenizer.json").unlink()
    refused(words, pair, folders)
    refused("the draft has rows for 492 ids and its tokenizer knows 512.*copy", pair, short)

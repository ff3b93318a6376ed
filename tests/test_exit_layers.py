"""Exits with a layer of their own: the trunk goes on as if it were not there, texts stay plain decoding's, training resumes."""

from dataclasses import replace

import pytest
import shelf
import test_gguf
import torch
from torch.nn import functional as F
from toys import random_model, text

import flashspec as fs
from flashspec import Models
from flashspec.models import engine as graphs
from flashspec.models.engine import KernelEngine
from flashspec.models.exits import ExitAdapter, ExitLayer, exits_file, load_exits, rows_at, save_exits
from flashspec.models.folder import verify_digests
from flashspec.models.packed import rounded
from flashspec.models.reader import SpanReader, engine_for
from flashspec.train import lessons
from flashspec.train.lessons import TOP, LessonRecipe, Turns, conversations, in_files, learned, sampled_divergence, written
from flashspec.train.taught import exit_pupil
from flashspec.train.texts import read

WIDE = {"vocab_size": 64, "hidden": 32, "head_dim": 8, "ffn": 48}  # the compiled path; the odd one is toys' default
IDS = torch.arange(20) * 7 % 61
TURNS = Turns([[1, 2, 3], [4, 5], [6, 7, 9]], [6, 7])


def exits_of(model, layers=(2, 4), seed=5):
    found = {}
    for layer in layers:
        found[layer] = ExitLayer.like_the_last(model)
        dice = torch.Generator().manual_seed(seed + layer)
        for weight in found[layer].parameters():
            weight.data += 0.05 * torch.randn(weight.shape, generator=dice)
        found[layer] = found[layer].eval().requires_grad_(False).to(model.embed.weight.dtype)
    return found


@pytest.mark.parametrize("way", ["odd", "compiled", "fixed"])
@pytest.mark.parametrize("method", ["self_speculation", "hispec"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_plain_decodings(way, method, temperature, monkeypatch):
    target = random_model(1, **(WIDE if way == "compiled" else {}))
    models = Models(target, exits=exits_of(target))
    wanted = text(models, "baseline", temperature)
    monkeypatch.setenv(graphs.FLAG, "eager" if way == "fixed" else "auto")
    monkeypatch.setattr(graphs, "KEYS", 16)
    assert isinstance(engine_for(target, 0, 2, 64), graphs.FixedEngine) == (way == "fixed")
    assert text(models, method, temperature) == wanted


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_rows_are_the_layers_and_the_trunk_is_untouched(form):
    model = random_model(2, **WIDE)
    model = rounded(model, form) if form == "int8" else model
    plain = random_model(2, **WIDE)
    last = exits_of(plain, (2,))[2].fitted(model)
    reader, bare = (SpanReader(model, 2, None, 64, layer) for layer in (last.layer, None))
    assert isinstance(reader.engine, KernelEngine) and len(reader.blocks) == 3
    for stop in (7, 8, 20):  # a prompt, one token, several
        reader.read(IDS[:stop]), bare.read(IDS[:stop])
    assert torch.equal(reader.trunk[:20], bare.rows[:20])
    wanted = rows_at(model, IDS[None], (2,), {2: last})[2]
    assert torch.allclose(reader.rows[:20], wanted, atol=0.05 if form == "int8" else 1e-4)
    assert not torch.allclose(reader.rows[:20], bare.rows[:20], atol=0.05)  # the control: the layer does something
    above = SpanReader(model, 4, reader, 64)
    whole = SpanReader(model, 4, None, 64)
    above.read(IDS), whole.read(IDS)
    assert torch.equal(above.rows[:20], whole.rows[:20])


def test_files_come_back_and_refuse_others(tmp_path):
    model = random_model(1, **WIDE)
    exits = exits_of(model)
    save_exits(exits, tmp_path / "exits.safetensors")
    read = load_exits(tmp_path / "exits.safetensors", model)
    assert list(read) == [2, 4] and all(isinstance(each, ExitLayer) for each in read.values())
    for name, weight in exits[2].state_dict().items():
        assert torch.allclose(read[2].state_dict()[name].float(), weight.float(), atol=0.01)
    shelf.refused("an exit of another model", load_exits, tmp_path / "exits.safetensors", random_model(1, **{**WIDE, "ffn": 56}))
    assert exits_file(tmp_path / "a.gguf").name == "a.exits.safetensors"


def test_the_sampled_loss_is_the_whole_one_where_all_are_drawn_and_near_it_otherwise(monkeypatch):
    dice = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(400, 16, generator=dice), torch.randn(64, 16, generator=dice)
    logs = torch.randn(64, 400, generator=dice).mul(2).log_softmax(-1)
    best, top = logs.topk(TOP, -1)
    given = {"top": top, "logs": best}

    def found(others):
        monkeypatch.setattr(lessons, "OTHERS", others)
        leaf = rows.clone().requires_grad_()
        return sampled_divergence(weight, leaf, given, torch.Generator().manual_seed(1)), leaf.grad

    log_q = (rows @ weight.T).log_softmax(-1).gather(1, top)
    scored = torch.zeros(400, dtype=torch.bool)
    scored[top[:, : lessons.SOLID].unique()] = True
    p, q = best.exp() * scored[top], log_q.exp() * scored[top]
    whole = (((p - q).abs().sum() + (p.sum(-1) - q.sum(-1)).abs().sum()) / 2 - (p * log_q).sum()) / 64
    near, _ = found(20_000)
    far, gradient = found(1)
    assert abs(near - whole) < 0.02 < abs(far - whole) and gradient.any()


@pytest.fixture
def taught(tmp_path):
    model = shelf.model(6)
    recipe = LessonRecipe((2,), texts=192, length=24, steps=6)
    return model, recipe, written(model, TURNS, tmp_path / "lessons", recipe)


def test_training_resumes_to_the_same_layer(taught, tmp_path, monkeypatch):
    model, recipe, files = taught
    whole, parts = ExitLayer.like_the_last(model), ExitLayer.like_the_last(model)
    learned(exit_pupil(model, whole, 2), in_files(files), tmp_path / "whole", recipe)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lessons, "SAVED", 2)
        shelf.interrupting(patch, lessons, "sampled_divergence", after=4)
        learned(exit_pupil(model, parts, 2), in_files(files), tmp_path / "cut", recipe)
    again = ExitLayer.like_the_last(model)
    learned(exit_pupil(model, again, 2), in_files(files), tmp_path / "cut", recipe)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(whole.norm.weight, ExitLayer.like_the_last(model).norm.weight)


def test_lessons_are_made_once_and_damage_is_told(taught, tmp_path):
    model, recipe, files = taught
    kept = {path: path.stat().st_mtime_ns for path in files}
    written(model, TURNS, tmp_path / "lessons", recipe)
    assert {path: path.stat().st_mtime_ns for path in files} == kept
    same, other = (conversations(model, TURNS, replace(recipe, seed=seed), 0) for seed in (0, 1))
    assert torch.equal(same["ids"][:8], read(files[0])["ids"]) and not torch.equal(same["ids"], other["ids"])
    files[0].write_bytes(files[0].read_bytes()[:-50])
    shelf.refused("remove it", read, files[0])


def test_lessons_are_what_the_model_says_of_whole_texts(taught):
    model, _, files = taught
    made = read(files[0])
    ids = made["ids"].long()
    *early, last = model.states(ids)
    logs = F.linear(model.norm(last), model.head_weight).float().log_softmax(-1)
    assert torch.allclose(logs.gather(2, made["top"].long()), made["logs"].float(), atol=5e-3)
    assert torch.allclose(early[1], made["rows.2"].float(), atol=5e-3)
    assert not torch.allclose(early[0], made["rows.2"].float(), atol=5e-3)  # the control


@pytest.mark.parametrize(("form", "how"), [
    ("hf", ["--kind", "layer", "--lessons", "96"]), ("gguf", ["--kind", "layer", "--lessons", "96"]),
    ("hf", ["--rank", "8", "--text", __file__]),
], ids=["hf", "gguf", "rank"])  # fmt: skip
def test_the_command_gives_a_model_exits_that_it_drafts_with(tmp_path, cli, form, how):
    test_gguf.checkpoint(tmp_path / "m", context=64, layers=4)
    source = tmp_path / "m"
    if form == "gguf":
        source = test_gguf.exported(source, tmp_path / "m.gguf", "gguf")
    before = shelf.listing(source)
    words = ["train", "exits", *how, "--target", source, "--steps", "3", "--out", tmp_path / "out"]
    assert "exit 2: acceptance" in cli(*words, "--exits", "1,2").out and shelf.listing(source) == before
    made = tmp_path / "out" / "m.gguf" if form == "gguf" else tmp_path / "out"
    verify_digests(tmp_path / "out")
    models = fs.load(made, None)
    assert list(models.exits) == [1, 2] and isinstance(models.exits[1], ExitLayer if "layer" in how else ExitAdapter)
    texts = [fs.generate(models, "def f", method, max_new_tokens=12).tokens for method in ("baseline", "self_speculation")]
    assert texts[0] == texts[1]
    assert cli(*words[:-1], tmp_path / "again", "--exits", "1,9", code=2)

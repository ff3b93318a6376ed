"""Drafts that borrow embedding, norm and head: what is read is what was taught, others' lenders are refused, texts stay exact."""

import json
import shutil
from pathlib import Path

import pytest
import shelf
import test_gguf
import torch
from torch.nn import functional as F

import flashspec as fs
from flashspec.cli.main import status
from flashspec.models.checkpoint import save_borrowed
from flashspec.models.packed import PackedLinear
from flashspec.models.transformer import Transformer
from flashspec.train.lessons import in_files
from flashspec.train.taught import copied, draft_pupil

IDS = torch.arange(20) * 7 % 61


BOTH = pytest.mark.parametrize("form", ["hf", "gguf"])


@pytest.fixture
def form():
    return "gguf"


@pytest.fixture
def source(tmp_path, form):
    test_gguf.checkpoint(tmp_path / "m", context=64, layers=4)
    return tmp_path / "m" if form == "hf" else test_gguf.exported(tmp_path / "m", tmp_path / "m.gguf", "gguf")


def taught(source, out, *more):
    words = ["draft", "teach", "--target", str(source), "--out", str(out), "--layers", "2", "--lessons", "96", "--steps", "3"]
    return status([*words, *more])


def borrowing(source, folder):
    """Write a draft of two of the model's own layers, untaught; returns the model and the layers."""
    base = fs.load(source, None, weights="dense", dtype="float32").target
    layers = copied(base, [0, 2])
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(weight.bfloat16())
    folder.mkdir()
    save_borrowed(layers, source, folder)
    return base, layers


@BOTH
def test_the_command_makes_a_draft_whose_texts_are_plain_decodings(source, tmp_path, capsys):
    before = shelf.listing(source)
    assert taught(source, tmp_path / "draft") == 0 and "acceptance" in capsys.readouterr().out
    assert shelf.listing(source) == before
    models = fs.load(source, tmp_path / "draft")
    assert models.draft.config.layers == 2 and models.draft.config.hidden == models.target.config.hidden
    assert isinstance(models.draft.blocks[0].attention.out, PackedLinear) == (source.suffix == ".gguf")
    texts = [fs.generate(models, "def f", method, max_new_tokens=12).tokens for method in ("baseline", "dense", "flash")]
    assert texts[0] == texts[1] == texts[2]
    assert fs.load(source, f"{tmp_path / 'draft'}:int4").draft.blocks[0].attention.out.packed[0].kind == "u4"
    record = json.loads((tmp_path / "draft" / "record.json").read_bytes())
    assert len(record["kept"]) == 2 and (tmp_path / "draft" / "curve.jsonl").is_file()


def test_a_second_draft_finds_the_lessons_and_a_run_goes_on(source, tmp_path):
    work = ["--work", str(tmp_path / "work")]
    assert taught(source, tmp_path / "a", *work) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "lessons").iterdir()}
    assert taught(source, tmp_path / "b", *work) == 0  # no step is repeated
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "lessons").iterdir()} == made
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert taught(source, tmp_path / "c", *work, "--rate", "0.1") == 0
    assert len(list((tmp_path / "work").glob("m.gguf-2-*"))) == 2  # another recipe is another run


@pytest.mark.parametrize("count", [2, 12, 40, 100])
def test_no_lesson_is_learned_from_and_held_out(count):
    found = in_files([Path(str(i)) for i in range(count)])
    rest, held = ({read.args[0] for read in reads} for reads in found)
    assert not rest & held and len(rest | held) == count and held and rest


def test_a_draft_with_other_layers_than_its_card_says_is_refused(source, tmp_path):
    borrowing(source, tmp_path / "draft")
    card = json.loads((tmp_path / "draft" / "config.json").read_text())
    for layers in (1, 3):
        (tmp_path / "draft" / "config.json").write_text(json.dumps({**card, "layers": layers}))
        shelf.refused(f"does not fit its {layers} layers", fs.load, source, tmp_path / "draft")


@BOTH
def test_what_is_read_is_what_was_taught(source, tmp_path):
    base, layers = borrowing(source, tmp_path / "d")
    draft = Transformer.load(tmp_path / "d", "float32", weights="dense")
    said = F.linear(draft_pupil(base, layers).said({"ids": IDS[None]}), base.head_weight)
    assert torch.allclose(draft(IDS[None]), said, atol=1e-4)
    other = copied(base, [0, 1])
    assert not torch.allclose(F.linear(draft_pupil(base, other).said({"ids": IDS[None]}), base.head_weight), said, atol=1e-2)


@BOTH
def test_another_lender_is_refused(source, tmp_path, capsys):
    copy = tmp_path / f"copy{source.suffix}"
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
    assert taught(copy, tmp_path / "draft") == 0
    weights = copy / "model.safetensors" if copy.is_dir() else copy
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    shelf.refused("not the model whose embedding this draft borrows", fs.load, source, tmp_path / "draft")
    shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    shelf.refused("no model at", fs.load, source, tmp_path / "draft", error=FileNotFoundError)
    assert taught(source, tmp_path / "four", "--layers", "4") == 2 and "fewer layers" in capsys.readouterr().err
    assert not (tmp_path / "four.work").exists()  # refused before hours of lessons


def test_gguf_writes_it_whole(source, tmp_path):
    borrowing(source, tmp_path / "draft")
    assert status(["export", str(tmp_path / "draft"), str(tmp_path / "whole"), "--format", "hf"]) == 0
    lent, whole = (fs.load(tmp_path / name, None, "float32", weights="dense").target for name in ("draft", "whole"))
    same, other = (shelf.far(whole(ids), lent(IDS[None])) for ids in (IDS[None], IDS[None].flip(1)))
    assert same < 0.02 < other and whole.config.layers == 2
    assert fs.load(tmp_path / "whole", None).encode("def f") == fs.load(source, None).encode("def f")
    assert not (tmp_path / "draft" / "tokenizer.json").exists() and (tmp_path / "whole" / "tokenizer.json").is_file()

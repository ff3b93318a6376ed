"""Drafts are found by name, folder, family and recipe; drafts and exits are measured as a loop counts."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import shelf
import tables as made
import torch
from shelf import refused

from flashspec import Transformer, load
from flashspec.measure.prompts import load_prompts
from flashspec.models.packed import rounded
from flashspec.models.synthetic import reshaped, shape
from flashspec.models.writing import write_digests
from flashspec.study import drafts, family
from flashspec.study.exits import CURVE, EXPERIMENT, Params, folder_of, shares
from flashspec.train.corpus import write_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    shelf.write_pair(root)
    shelf.model(1).save(root / "flat", "float32")
    (root / "flat" / "design.json").write_text(json.dumps({"design": {"steps": 7}, "target": {}}))
    write_tokenizer(root / "flat", root / "tokenizer.json")
    write_digests(root / "flat")
    shelf.prompts_file(root, each=3)
    return root


@pytest.mark.parametrize("name", ["OPT-125M", "OPT-1.3B", "Qwen3-0.6B"])
@pytest.mark.parametrize("divisor", [2, 4])
def test_a_reshaped_body_has_the_same_parameters(name, divisor):
    whole = shape(name)
    wide = reshaped(whole, whole.layers // divisor)
    assert wide.body_parameters == pytest.approx(whole.body_parameters, rel=0.01)
    assert wide.hidden > whole.hidden and wide.head_dim == whole.head_dim and wide.heads % wide.kv_heads == 0
    assert replace(whole, layers=wide.layers).body_parameters < 0.6 * whole.body_parameters
    refused("layers must be at least 1", reshaped, whole, 0)
    refused("attention alone", reshaped, replace(shape("OPT-125M"), ffn=8), 1)


def test_a_target_and_a_draft_of_one_name_are_two_models(home):
    asked = SimpleNamespace(target=(str(home / "target"),), draft=(str(home / "family" / "target"),))
    (home / "family").mkdir(exist_ok=True)
    (home / "family" / "target").symlink_to(home / "flat")
    assert drafts.folders(asked) == {"target": home / "family" / "target", "target target": home / "target"}


def test_a_prompts_file_of_ones_own_is_one_of_the_files_that_tables_are_about(home, tmp_path):
    own = tmp_path / "mine.json"
    own.write_bytes((home / "prompts.json").read_bytes())
    asked = [SimpleNamespace(target=(), draft=("main",), prompts=name) for name in (str(own), "instructions", "", "missing.json")]
    assert [set(drafts.folders(each)) for each in asked] == [{"main", str(own)}, {"main"}, {"main"}, {"main"}]


def test_drafts_are_found_by_name_and_folder(home):
    assert {"main", "shallow"} <= set(drafts.drafts_of(()))
    (home / "family").mkdir(exist_ok=True)
    (home / "family" / "flat").symlink_to(home / "flat")
    assert set(drafts.drafts_of(("main", str(home / "flat")))) == {"main", "flat"}
    refused("different names", drafts.drafts_of, (str(home / "flat"), str(home / "family" / "flat")))
    refused("nowhere", drafts.drafts_of, ("nowhere",), error=FileNotFoundError)


def test_a_row_is_what_a_loop_counts(home):
    asked = family.EXPERIMENT.parse({"prompts": str(home / "prompts.json"), "texts": 2}
                                    | {name: str(home / name) for name in ("target", "draft")})  # fmt: skip
    rows = list(family.measure(asked))
    assert {(r.draft, r.kind) for r in rows} == {("draft", "code"), ("draft", "prose")}
    prompts = [p for p in load_prompts(home / "prompts.json", 2) if p.kind == "code"]
    models = load(home / "target", home / "draft", "float32", "cpu", "dense")
    model, loss, right = rounded(models.draft, "int8"), 0.0, 0  # as the study runs its drafts
    with torch.no_grad():
        for prompt in prompts:
            logits = model(torch.tensor([prompt.ids]))[0]
            for place, wanted in enumerate(prompt.ids[1:]):
                loss -= float(logits[place].log_softmax(-1)[wanted])
                right += int(logits[place].argmax()) == wanted
    row = rows[0]
    assert row.loss == pytest.approx(loss, rel=1e-4) and row.right == right
    assert row.positions == sum(len(p.ids) - 1 for p in prompts) and row.asked == 2 and 0 <= row.chosen <= 2
    assert [r.kind for r in family.measure(replace(asked, kind=("prose",)))] == ["prose"]
    refused("kind must be one of code, prose", list, family.measure(replace(asked, kind=("song",))))
    refused("texts must be at least 1", replace, asked, texts=0)


@pytest.fixture(scope="module")
def wanted(folders):
    return Params(target=(str(folders["target"]),), depth=(1, 3, 6, 40), prompts=str(folders["prompts"]), per_kind=1)


def naive(model, ids, depth):
    x = model.embed(torch.tensor([ids[:-1]]))
    for layer in model.layers[:depth]:
        x = layer(x, model.rope)
    return (model.norm(x) @ model.head_weight.T)[0]


def test_counts_are_those_of_a_loop(wanted):
    rows = list(EXPERIMENT.function(wanted))
    assert {(r.depth, r.against) for r in rows} == {(1, 3), (1, 6), (3, 6)} and {r.kind for r in rows} == {"code", "prose"}
    model, (prompt, *_) = Transformer.load(wanted.target[0]), load_prompts(wanted.prompts, 1)
    row = next(r for r in rows if (r.depth, r.against, r.kind) == (1, 3, prompt.kind))
    with torch.no_grad():
        low, high, top = (naive(model, list(prompt.ids), depth) for depth in (1, 3, 6))
    same, right = low.argmax(-1) == high.argmax(-1), low.argmax(-1) == top.argmax(-1)
    assert row.positions == len(prompt.ids) - 1
    assert (row.same, row.right, row.both) == (int(same.sum()), int(right.sum()), int((same & right).sum()))
    assert row.in_top_5 == sum(int(h.argmax()) in one.topk(5).indices.tolist() for one, h in zip(low, high, strict=True))
    overlap = torch.minimum(low.softmax(-1), high.softmax(-1)).sum(-1).mean()
    assert row.overlap == pytest.approx(float(overlap), rel=1e-4)
    assert row.overlap != pytest.approx(float(torch.minimum(low.softmax(-1), top.softmax(-1)).sum(-1).mean()), rel=1e-4)


def test_an_exit_at_the_top_or_above_is_no_exit(wanted):
    refused("below the target's 6", list, EXPERIMENT.function(replace(wanted, depth=(6, 40))))
    refused("source must be one of", replace, wanted, source=("hearsay",))
    rows = list(EXPERIMENT.function(EXPERIMENT.presets["exit_training"]))
    lines = (folder_of("reference", "target") / CURVE).read_text().splitlines()
    last = json.loads(lines[-1])
    assert len(rows) == 2 * len(lines) and {r.layers for r in rows} == {16}
    assert [(r.loss, r.overlap) for r in rows[-2:]] == [(last[f"loss_{d}"], last[f"accept_{d}"]) for d in (2, 4)]
    assert list(EXPERIMENT.function(replace(wanted, source=("training",)))) == []


def test_shares_weigh_kinds_by_positions_and_leave_training_out():
    table = shares(made.quality().frame)
    line = table[(table["depth"] == 1) & (table["against"] == 4)].iloc[0]
    assert (line["agreement"], line["top_5"], line["overlap"], line["loss"]) == pytest.approx((0.6, 0.8, 0.55, 4.0))
    assert (line["wrongly_accepted"], line["wrongly_rejected"]) == pytest.approx((12 / 60, 8 / 40))
    frame = made.quality().frame
    uneven = frame.assign(positions=frame["positions"].where(frame["kind"] == "code", 300.0))
    assert shares(uneven)["overlap"].iloc[0] == pytest.approx((0.5 + 3 * 0.6) / 4)

"""Exits are counted as a loop counts them, and training is read as it was written down."""

import json
from dataclasses import replace

import pytest
import tables_hispec as made
import tiny
import torch

from flashspec.models.transformer import Transformer
from flashspec.study import run
from flashspec.study.exits import CURVE, EXPERIMENT, PRESETS, Params, folder_of, load_prompts, shares


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    tiny.pair().target.save(root / "target", "float32")
    return Params(target=(str(root / "target"),), depth=(1, 3, 6, 40), prompts=str(tiny.prompts_file(root)), per_kind=1)


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
    with pytest.raises(ValueError, match="below the target's 6"):
        list(EXPERIMENT.function(replace(wanted, depth=(6, 40))))
    with pytest.raises(ValueError, match="source must be among"):
        replace(wanted, source=("hearsay",))


def test_training_is_read_as_it_was_written_down_and_a_model_without_a_curve_gives_none(wanted):
    rows = list(EXPERIMENT.function(PRESETS["exit_training"]))
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


def test_a_table_comes_back_as_it_was_counted(wanted, tmp_path):
    once, again = (run("exits", wanted, root=tmp_path) for _ in range(2))
    assert once.rows == again.rows and again.path.suffix == ".parquet" and not EXPERIMENT.measured

"""True shapes on stand-ins; pages of true shapes and live pages say what was measured and no more."""

import weakref
from dataclasses import replace

import pytest
import shelf
import torch
from shelf import refusing

from flashspec import METHODS, Models, Sampling
from flashspec.models.synthetic import shape
from flashspec.study import live, parts, real_shapes, tables
from flashspec.study.real_shapes import EXPERIMENT, PARTS, Params, Row

SMOKE = EXPERIMENT.presets["smoke"]
HEADS = {("dense", 0), ("flash", 8)}


def test_the_parts_hold_what_a_round_is_made_of(tmp_path, cli):
    # both final tokens, with and without graphs, every length of a check, and the roofline of each
    assert cli("run", "real_shapes", "--preset", "smoke", "--results", tmp_path)
    costs = EXPERIMENT.stored(SMOKE, tmp_path).frame
    assert (costs["seconds"] > 0).all() and (costs["bandwidth"] > 0).all()
    assert (costs.loc[costs["piece"] != "text", "bytes"] > 0).all()
    drafts, ends, checks = (costs[costs["piece"] == piece] for piece in ("burst", "text", "check"))
    for timed in (drafts, ends, checks, costs[costs["piece"] == "body"]):
        shared = timed.drop(columns=["seconds", "turn", "bandwidth"])
        modes = [rows.drop(columns="graphs").values.tolist() for _, rows in shared.groupby("graphs")]
        assert set(shared["graphs"]) == set(SMOKE.graphs) and str(modes[0]) == str(modes[1])
    for timed in (costs[costs["piece"] == "projection"], drafts, ends[ends["k"] > 0]):
        assert set(zip(timed["head"], timed["probes"], strict=True)) == HEADS
    both = {(head, end) for head, _ in HEADS for end in ("deferred", "eager")}
    assert set(zip(ends["head"], ends["finalize"], strict=True)) == {("", "deferred"), *both}
    assert set(drafts["k"]) == {SMOKE.k} and set(ends["tokens"]) == {SMOKE.new_tokens}
    assert set(checks["format"]) == {"int4"} and set(checks["rows"]) == set(range(1, SMOKE.k + 2))


def test_what_a_part_made_is_gone_before_the_next_starts(tmp_path, monkeypatch):
    made = []

    def part_of(params):
        assert not any(held() for held in made)
        model = torch.nn.Module()
        model.reader = [model]  # a circle
        made.append(weakref.ref(model))
        yield vars(parts.Row("burst", "tiny", "", "", 1.0, 0, group=params.part[0]))

    for name in ("pieces", "end_to_end"):
        monkeypatch.setattr(real_shapes, name, part_of)
    found = EXPERIMENT.run(replace(SMOKE, part=PARTS, graphs=("0",)), root=tmp_path)
    assert list(found.frame["group"]) == list(PARTS) and len(made) == len(PARTS)


def test_without_a_device_it_says_so(tmp_path, cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in cli("run", "real_shapes", "--results", tmp_path, code=2).err and not list(tmp_path.rglob("*.*"))


test_nonsense_is_refused = refusing([
    (lambda: replace(SMOKE, part=("hope",)), "part must be one of"),
    (lambda: replace(SMOKE, graphs=("on",)), "graphs must be one of"),
    (lambda: replace(SMOKE, draft="Q"), "not known"),
])  # fmt: skip


MACHINE = {"machine": {"cpu": "a made-up processor", "cores": 2, "isa": "", "device": "a made-up GPU"}, "date": "2026-01-01"}


def test_a_table_gives_medians_and_shares_of_the_roofline(tmp_path):
    assert real_shapes.costs(None).index.tolist() == [real_shapes.NOT_YET]
    what = {"bytes": 1000, "bandwidth": 1e6, "probes": 8, "graphs": "auto"}
    steps = [Row("burst", "Q", "flash", "bfloat16", s, i, **what) for i, s in enumerate((1e-3, 2e-3, 9e-3))]
    tables.write(EXPERIMENT.place(Params(), tmp_path), Row, steps, MACHINE)
    found = EXPERIMENT.stored(root=tmp_path)
    line = real_shapes.costs(found).loc["burst"]
    assert (line["what"], line["ms"], line["roofline ms"], line["of roofline"]) == ("flash 8", 2.0, 1.0, 0.5)


def test_memory_is_counted_by_hand():
    # Llama-3.1-8B: 8.03 billion parameters of two bytes, a cache of 32 layers, two of 8 heads of 128, two bytes each
    line = real_shapes.memory(("Llama-3.1-8B", "Qwen3-0.6B")).loc["Llama-3.1-8B"]
    assert line["bfloat16, GB"] == pytest.approx(16.06, abs=0.02)
    assert line["cache of 1000 tokens, GB"] == pytest.approx(1e-6 * 32 * 2 * 8 * 128 * 2, abs=0.005)
    ends = 2 * 2 * shape("Llama-3.1-8B").head_parameters / 1e9
    assert 0.25 < (line["4 bits, GB"] - ends) / (line["bfloat16, GB"] - ends) < 0.28


PROMPT = [3, 1, 4, 1, 5]


def test_every_method_is_decoded_prints_one_text_and_is_left_out_where_a_target_lacks_its_exits():
    outputs = live.decode_all(shelf.pair(torch.float64), PROMPT, Sampling(temperature=1.0), 24)
    assert set(METHODS) <= set(outputs)
    assert live.table(outputs)["same text"].all()
    dense = outputs["dense"].stats
    assert live.table(outputs).loc["dense", "share accepted"] == round(dense.accepted / dense.drafted, 2)
    other = replace(outputs["flash"], tokens=[*outputs["flash"].tokens[:-1], -1])
    assert not live.table({**outputs, "flash": other}).loc["flash", "same text"]
    assert outputs["dense, eager"].stats.forwards > outputs["dense"].stats.forwards
    short = live.decode_all(Models(shelf.model(3), shelf.model(2)), PROMPT, Sampling(), 6)
    assert "hispec" in outputs and "hispec" not in short and {"baseline", "dense", "flash", "self_speculation"} <= set(short)
    assert live.table(short).loc["baseline", "forwards"] == 6

"""`flashspec gpu` on stand-ins; pages of true shapes and live pages say what was measured and no more."""

import gc
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from shelf import refusing

from flashspec import METHODS, Models, Output, Sampling, generate
from flashspec.cli import gpu
from flashspec.cli.main import status
from flashspec.models.synthetic import shape
from flashspec.study import live, loading, notebooks, real_shapes, tables
from flashspec.study.real_shapes import EXPERIMENT, PARTS, PRESETS, Params, Row

SMOKE = PRESETS["smoke"]
HEADS = {("dense", 0), ("flash", 8)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    assert status(["gpu", "--stand-ins", "--results", str(root), "--minutes", "60"]) == 0
    return root


def test_the_parts_hold_what_a_round_is_made_of(measured):
    # both final tokens, with and without graphs, every length of a check, each span of the exits, and the roofline of each
    found = {part: EXPERIMENT.stored(replace(SMOKE, part=part), measured).frame for part in PARTS}
    texts = found.pop("correctness")
    assert set(texts["group"]) == {"baseline text", "dense text", "flash text", "int4 product"}
    assert (texts["agrees"] == True).all()  # noqa: E712
    for frame in found.values():
        assert (frame["seconds"] > 0).all() and (frame["bandwidth"] > 0).all() and frame["agrees"].isna().all()
        assert (frame["bytes"] > 0).all() or set(frame["piece"]) == {"text"}
    for part in ("draft_step", "end_to_end", "verify", "spans"):
        shared = found[part].drop(columns=["seconds", "turn", "bandwidth"])
        modes = [frame.drop(columns="graphs").values.tolist() for _, frame in shared.groupby("graphs")]
        assert set(shared["graphs"]) == set(SMOKE.graphs) and str(modes[0]) == str(modes[1])
    drafts, ends, checks = found["draft_step"], found["end_to_end"], found["verify"]
    assert set(drafts["piece"]) == {"body", "burst"} and set(drafts.loc[drafts["piece"] == "burst", "k"]) == {SMOKE.k}
    for frame in (found["projection"], drafts[drafts["piece"] == "burst"], ends[ends["k"] > 0]):
        assert set(zip(frame["head"], frame["probes"], strict=True)) == HEADS
    both = {(head, end) for head, _ in HEADS for end in ("deferred", "eager")}
    assert set(zip(ends["head"], ends["finalize"], strict=True)) == {("", "deferred"), *both}
    assert set(ends["tokens"]) == {SMOKE.new_tokens} and set(checks["format"]) == {"int4"}
    assert set(checks.loc[checks["piece"] == "check", "rows"]) == set(range(1, SMOKE.k + 2))
    assert set(found["spans"]["group"]) == {"layers 0-2", "layers 2-4", "layers 4-16"}


def test_each_part_is_stored_and_what_it_made_is_gone_before_the_next_starts(tmp_path, monkeypatch):
    made = []

    class Model:
        pass

    def measure(params):
        assert not any(held() for held in made)
        assert len(list((tmp_path / "real_shapes").glob("*.parquet"))) == len(made) == PARTS.index(params.part)
        model = Model()
        model.reader = model
        made.append(weakref.ref(model))
        return [Row(params.part, "tiny", "", "", 1.0, 0, agrees=True)]

    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=measure))
    gc.disable()
    try:
        assert list(gpu.steps(SMOKE, tmp_path, 60.0))[-1] == "done" and len(made) == len(PARTS)
    finally:
        gc.enable()


def test_a_second_run_measures_nothing_and_a_stopped_one_continues(measured, monkeypatch):
    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=None))
    ticks = iter(range(0, 10**6, 50))
    said = list(gpu.steps(SMOKE, measured, 2.0, clock=lambda: next(ticks)))
    assert said[-1].startswith("stopped before") and "run it again to continue" in said[-1]
    assert list(gpu.steps(SMOKE, measured, 60.0))[-1] == "done"


def test_without_a_device_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert status(["gpu"]) == 2 and "no CUDA device" in capsys.readouterr().err


def test_a_wrong_result_stops_before_anything_is_timed(tmp_path, monkeypatch):
    wrong = Row("correctness", "tiny", "", "", 0.0, 0, group="text", graphs="auto", agrees=False)
    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=lambda params: [wrong]))
    said = list(gpu.steps(SMOKE, tmp_path, 60.0))
    assert len(said) == 2 and said[1].startswith("stopped: text (tiny, graphs auto) differ")


test_nonsense_is_refused = refusing([
    (lambda: replace(SMOKE, part="hope"), "part must be among"),
    (lambda: replace(SMOKE, graphs=("on",)), "graphs must be among"),
    (lambda: replace(SMOKE, draft="Q"), "not known"),
])  # fmt: skip


NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
MACHINE = {"machine": {"cpu": "a made-up processor", "cores": 2, "isa": "", "device": "a made-up GPU"}, "date": "2026-01-01"}


def test_a_table_gives_medians_and_shares_of_the_roofline(tmp_path):
    none = real_shapes.found(Params(), tmp_path)
    assert none == {}
    assert real_shapes.costs(none).index.tolist() == real_shapes.agreements(none).index.tolist() == [real_shapes.NOT_YET]
    what = {"bytes": 1000, "bandwidth": 1e6, "probes": 8, "graphs": "auto"}
    steps = [Row("burst", "Q", "flash", "bfloat16", s, i, **what) for i, s in enumerate((1e-3, 2e-3, 9e-3))]
    agreed = [Row("correctness", "tiny", "", "", 0.0, 0, group="text", graphs="auto", agrees=True)]
    for part, rows in {"correctness": agreed, "draft_step": steps}.items():
        tables.write(EXPERIMENT.place(replace(Params(), part=part), tmp_path), Row, rows, MACHINE)
    found = real_shapes.found(Params(), tmp_path)
    assert set(found) == {"correctness", "draft_step"} and real_shapes.agreements(found).loc["text", "agrees"]
    line = real_shapes.costs(found).loc["burst"]
    assert (line["what"], line["ms"], line["roofline ms"], line["of roofline"]) == ("flash 8", 2.0, 1.0, 0.5)


def test_the_worst_load_is_told_and_the_how_tos_parameters_are_those_of_loading(tmp_path):
    rows = [loading.Row("awq", 1000, 100, 100 + peak, 900, 1.0, i) for i, peak in enumerate((1000, 1150, 1050))]
    tables.write(loading.EXPERIMENT.place(loading.Params(), tmp_path), loading.Row, rows, MACHINE)
    results = loading.EXPERIMENT.stored(root=tmp_path)
    assert loading.loads(results)["peak over files"].tolist() == [1.15]
    said, meant = notebooks.parameters(NOTEBOOKS / "11_your_models.ipynb"), vars(loading.Params())
    assert {name: said[name].default for name in meant} == meant


def test_memory_is_counted_by_hand():
    # Llama-3.1-8B: 8.03 billion parameters of two bytes, a cache of 32 layers, two of 8 heads of 128, two bytes each
    line = real_shapes.memory(("Llama-3.1-8B", "Qwen3-0.6B")).loc["Llama-3.1-8B"]
    assert line["bfloat16, GB"] == pytest.approx(16.06, abs=0.02)
    assert line["cache of 1000 tokens, GB"] == pytest.approx(1e-6 * 32 * 2 * 8 * 128 * 2, abs=0.005)
    ends = 2 * 2 * shape("Llama-3.1-8B").head_parameters / 1e9
    assert 0.25 < (line["4 bits, GB"] - ends) / (line["bfloat16, GB"] - ends) < 0.28


PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def outputs():
    return live.decode_all(tiny.pair(torch.float64), PROMPT, Sampling(temperature=1.0), 24)


def test_every_method_is_decoded_and_prints_one_text(outputs):
    assert set(METHODS) <= set(outputs)
    assert live.agreeing(outputs) == len(outputs) - 1
    assert live.table(outputs)["same text"].all()
    other = Output("", [*outputs["flash"].tokens[:-1], -1], outputs["flash"].events, outputs["flash"].stats)
    assert not live.table({**outputs, "flash": other}).loc["flash", "same text"]
    assert live.agreeing({**outputs, "flash": other}) == len(outputs) - 2
    assert outputs["dense, eager"].stats.forwards > outputs["dense"].stats.forwards


def test_methods_whose_exits_a_target_has_not_are_left_out(outputs):
    short = live.decode_all(Models(tiny.model(3), tiny.model(2)), PROMPT, Sampling(), 6)
    assert "hispec" in outputs and "hispec" not in short and {"baseline", "dense", "flash", "self_speculation"} <= set(short)
    assert live.forwards(short, "hispec") == live.NOT_OFFERED and live.forwards(short, "baseline") == 6


def test_colours_count_what_was_kept(outputs):
    page, kinds = live.coloured(tiny.pair(), "a < b", outputs["dense"]).data, list(live.kinds(outputs["dense"]))
    assert "a &lt; b" in page and len(re.findall("<span", page)) == len(outputs["dense"].tokens)
    assert kinds.count("accepted") == outputs["dense"].stats.accepted
    plain = generate(tiny.pair(), PROMPT, "baseline", Sampling(), max_new_tokens=8)
    assert set(live.kinds(plain)) == {"own"}

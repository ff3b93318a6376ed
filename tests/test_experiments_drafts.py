"""The draft study's experiments run on tiny models: every setting has a row, counts repeat, parts lie beside the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import shelf
import tiny
import torch

from flashspec.model.checkpoint import save_transformer
from flashspec.model.reshape import reshaped
from flashspec.model.rounded import rounded
from flashspec.model.synthetic import shape
from flashspec.study import drafts, foretold, run, store
from flashspec.study.experiments import (
    draft_generalises,
    draft_latency,
    draft_parts,
    draft_quality,
    draft_throughput,
    predicted_vs_measured,
    sweep_350,
)
from flashspec.train import corpus
from flashspec.train.family import FAMILY
from flashspec.train.package import write_digests, write_tokenizer
from flashspec.train.tune import Tuning, docstrings, tuned

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, its draft, a one-layer draft with a design, and prompts."""
    root = tmp_path_factory.mktemp("home")
    shelf.write_pair(root)
    save_transformer(tiny.model(1), root / "flat", "float32")
    (root / "flat" / "design.json").write_text(json.dumps({"design": {"steps": 7}, "target": {}}))
    write_tokenizer(root / "flat", root / "tokenizer.json")
    write_digests(root / "flat")
    tiny.prompts_file(root, each=3)
    return root


@pytest.fixture
def common(home: Path) -> dict:
    names = {name: str(home / name) for name in ("target", "draft", "flat", "prompts.json")}
    pair = (names["draft"], names["flat"])
    return {"target": names["target"], "drafts": pair, "prompts": names["prompts.json"], "dtype": "float32"}


def test_the_sweep_has_every_setting_and_its_parts_beside_it(common: dict, tmp_path: Path) -> None:
    params = replace(sweep_350.SMOKE, **common, ks=(1, 2), temperatures=(0.0, 1.0), per_kind=2, repeats=2)
    found = run(sweep_350.EXPERIMENT, params, root=tmp_path)
    settings = {(r.draft, r.method, r.k, r.temperature, r.kind, r.repeat) for r in found.rows}
    assert len(settings) == len(found.rows) == 2 * 2 * 2 * 2 * (1 + 2)
    assert {(r.draft, r.layers, r.steps) for r in found.rows} == {("draft", 3, None), ("flat", 1, 7)}
    assert all(r.emitted == 16 and r.prompts == 2 and r.seconds > 0 and r.target == "target" for r in found.rows)
    for kind in ("code", "prose"):
        for temperature in (0.0, 1.0):
            same = [r for r in found.rows if (r.kind, r.temperature) == (kind, temperature)]
            assert len({r.text_digest for r in same}) == 1
    names = {r.parts for r in found.rows}
    assert names == {path.stem for path in (tmp_path / "draft_parts").glob("*.csv")} and len(names) == 2 * 2
    parts = foretold.parts_of(found)
    assert {"step", "overhead", "burst 1 dense", "burst 2 dense", "check 2", "prefill"} <= set(parts["part"])
    turns = 1 + 2 * 4
    assert (parts.groupby(["table", "part"]).size() == turns).all() and (parts["seconds"] >= 0).all()
    assert set(parts.groupby("repeat")["kind"].first()) == {"code", "prose"}
    assert store.ROOT.get() is None


def test_a_killed_sweep_continues(common: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = replace(sweep_350.SMOKE, **common)
    done: list[sweep_350.Params] = []

    def dying(point: sweep_350.Params) -> list:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(point)
        return list(sweep_350.measure(point))

    with pytest.raises(KeyboardInterrupt):
        run(replace(sweep_350.EXPERIMENT, function=dying), params, root=tmp_path)
    assert list((tmp_path / "sweep_350").glob("*.part.jsonl"))
    found = run(sweep_350.EXPERIMENT, params, root=tmp_path)
    assert found.origin["resumed_points"] == 1 and {r.draft for r in found.rows} == {"draft", "flat"}


def test_the_default_sweep_has_at_least_350_runs() -> None:
    params = sweep_350.Params()
    kinds = {prompt.kind for prompt in sweep_350.load_prompts(None, 1)}
    runs = len(sweep_350.points(params)) * len(params.heads) * len(params.ks) * len(kinds)
    assert runs >= 350 and params.per_kind >= 4 and params.per_kind * params.new_tokens >= 256


def test_drafts_race_each_other_and_are_foretold(common: dict, tmp_path: Path) -> None:
    params = replace(draft_throughput.SMOKE, **common, ks=(1, 2), per_kind=3, repeats=3)
    found = run(draft_throughput.EXPERIMENT, params, root=tmp_path)
    assert {(r.draft, r.k) for r in found.rows if r.k} == {(d, k) for d in ("draft", "flat") for k in (1, 2)}
    assert {r.kind for r in found.rows} == {"all"} and len(found.rows) == 3 * (1 + 4)
    assert all(len({r.text_digest for r in found.rows if r.repeat == turn}) == 1 for turn in range(3))
    assert len({r.text_digest for r in found.rows}) == 3 and {r.prompts for r in found.rows} == {2}
    wanted = replace(predicted_vs_measured.SMOKE, **common, ks=(1, 2), skip=1)
    counts = run(predicted_vs_measured.EXPERIMENT, wanted, root=tmp_path)
    table = foretold.predictions(found.frame, foretold.parts_of(found), counts.frame)
    assert len(table) == 3 * 4 and (table["predicted"] > 0).all()


def test_unseen_prompts_are_other_prompts(common: dict) -> None:
    params = replace(predicted_vs_measured.SMOKE, **common, skip=1, per_kind=2)
    used = predicted_vs_measured.load_prompts(common["prompts"], 1)
    left = predicted_vs_measured.unseen(params)
    assert len(left) == 4 and not set(left) & set(used)
    with pytest.raises(ValueError, match="lower skip"):
        predicted_vs_measured.unseen(replace(params, skip=3))


def test_replayed_counts_are_those_of_live_runs(common: dict) -> None:
    """The same prompts on both sides: replay and live decode agree exactly, and other prompts do not."""
    live = replace(draft_throughput.SMOKE, **common, repeats=1, temperatures=(0.0, 1.0), per_kind=1, ks=(2,), new_tokens=24)
    told = replace(predicted_vs_measured.SMOKE, **common, ks=(2,), temperatures=(0.0, 1.0), skip=1, new_tokens=24)
    first = predicted_vs_measured.load_prompts(common["prompts"], 1)
    rows = replayed_rows(told, first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_throughput, "kept", lambda *args: "none")
        lived = [r for r in draft_throughput.measure(live) if r.k]
    for row in lived:
        mine = [r for r in rows if (r.draft, r.temperature) == (row.draft, row.temperature)]
        assert (sum(r.rounds for r in mine), sum(r.drafted for r in mine)) == (row.rounds, row.drafted)


def replayed_rows(params: predicted_vs_measured.Params, prompts: list) -> list:
    """The experiment's rows on given prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted_vs_measured, "unseen", lambda params: prompts)
        return list(predicted_vs_measured.measure(params))


def test_quality_is_what_a_loop_counts(common: dict) -> None:
    rows = list(draft_quality.measure(replace(draft_quality.SMOKE, **common)))
    assert {(r.draft, r.kind) for r in rows} == {(d, k) for d in ("draft", "flat") for k in ("code", "prose")}
    row = next(r for r in rows if (r.draft, r.kind) == ("flat", "code"))
    prompts = [p for p in draft_quality.load_prompts(common["prompts"], 2) if p.kind == "code"]
    model, loss, right = rounded(tiny.model(1), "int8"), 0.0, 0  # as the study runs its drafts
    with torch.no_grad():
        for prompt in prompts:
            logits = model(torch.tensor([prompt.ids]))[0]
            for place, wanted in enumerate(prompt.ids[1:]):
                loss -= float(logits[place].log_softmax(-1)[wanted])
                right += int(logits[place].argmax()) == wanted
    assert row.loss == pytest.approx(loss, rel=1e-4) and row.right == right
    assert row.positions == sum(len(p.ids) - 1 for p in prompts) and row.asked == 2 and 0 <= row.chosen <= 2
    assert row.emitted == row.rounds + row.accepted == 16
    assert list(draft_quality.measure(replace(draft_quality.SMOKE, **common))) == rows


def test_a_model_that_knows_a_text_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [draft_quality.Prompt("code", (1, 2, n, n)) for n in (3, 4, 5)]
    table = {3: 0.0, 4: -1.0, 5: -2.0}
    monkeypatch.setattr(draft_quality, "mean_chance", lambda model, start, rest: table[rest[0]])
    assert [draft_quality.chooses(tiny.model(1), prompts, n) for n in range(3)] == [True, False, False]


@pytest.mark.parametrize("name", ["OPT-125M", "OPT-1.3B", "Qwen3-0.6B"])
@pytest.mark.parametrize("divisor", [2, 4])
def test_a_reshaped_body_has_the_same_parameters(name: str, divisor: int) -> None:
    whole = shape(name)
    wide = reshaped(whole, whole.layers // divisor)
    assert wide.body_parameters == pytest.approx(whole.body_parameters, rel=0.01)
    assert wide.hidden > whole.hidden and wide.head_dim == whole.head_dim and wide.heads % wide.kv_heads == 0
    assert replace(whole, layers=wide.layers).body_parameters < 0.6 * whole.body_parameters


def test_a_body_that_cannot_be_reshaped_is_refused() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1"):
        reshaped(shape("OPT-125M"), 0)
    with pytest.raises(ValueError, match="attention alone"):
        reshaped(replace(shape("OPT-125M"), ffn=8), 1)


def test_latency_times_spreads_and_a_cut_target() -> None:
    rows = list(draft_latency.measure(replace(draft_latency.SMOKE, repeats=1)))
    steps = {r.layers: r for r in rows if r.what == "step"}
    assert set(steps) == {16, 4} and steps[4].hidden > steps[16].hidden
    checks = {(r.timed, r.rows) for r in rows if r.group == "target"}
    assert checks == {(1, 1), (1, 3), (4, 1), (4, 3)} and {r.layers for r in rows if r.group == "target"} == {16}
    assert all(r.seconds > 0 and r.bytes > 0 for r in rows)
    sizes = {r.timed: r.bytes for r in rows if r.group == "target"}
    head, layer = sizes[1] - (sizes[4] - sizes[1]) / 3, (sizes[4] - sizes[1]) / 3
    assert 0 < head == pytest.approx(2 * shape("reference-target").head_parameters, rel=0.01) and layer > 0
    assert len(draft_latency.points(draft_latency.Params())) == 5


def test_shapes_that_are_compared_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def timed(calls: dict, params: object) -> Iterator[tuple[str, int, float]]:
        asked.append(list(calls))
        return ((name, 0, 1.0) for name in calls)

    monkeypatch.setattr(draft_latency, "timed", timed)
    rows = list(draft_latency.measure(draft_latency.SMOKE))
    assert asked == [["0 step 1", "0 body 1", "1 step 1", "1 body 1"], ["0 check 1", "0 check 3", "1 check 1", "1 check 3"]]
    assert [(r.layers, r.what, r.rows) for r in rows[:4]] == [(16, "step", 1), (16, "body", 1), (4, "step", 1), (4, "body", 1)]


def test_a_variant_is_tuned_once_and_the_drafts_run_on_it(
    common: dict, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.py"
    text.write_text("\n".join(f'def f{n}():\n    """{"one two three four five six seven " * 6}{n}"""' for n in range(60)))
    monkeypatch.setattr(corpus, "split", lambda root: ([text], []))
    short = {name: Tuning(2, 1, 1, 16) for name in (draft_generalises.VARIANT, draft_generalises.INDEPENDENT)}
    monkeypatch.setattr(draft_generalises.Params, "tunings", short)
    names = {name: value for name, value in common.items() if name != "drafts"}
    params = replace(draft_generalises.SMOKE, **names, drafts=(str(home / "flat"),), work=str(tmp_path / "variants"))
    rows = list(draft_generalises.measure(params))
    assert {r.target for r in rows} == {"target", "fine-tuned", "independent"} and len({r.target_digest for r in rows}) == 3
    assert {r.draft for r in rows} == {"flat"} and {r.k for r in rows} == {0, 2}
    folder = draft_generalises.variant_folder(params)
    before = (folder / "digests.json").read_bytes()
    assert draft_generalises.variant(params) == folder and (folder / "digests.json").read_bytes() == before
    away = str(home / "target")
    named = replace(params, target="reference", targets=(away,))
    assert draft_generalises.names_of(named) == {"reference": "reference", "target": away}


def test_tuning_needs_enough_text(tmp_path: Path) -> None:
    import numpy

    with pytest.raises(ValueError, match="needs 181; give more"):
        tuned(tiny.model(1), tmp_path, numpy.zeros(50, dtype="int32"), tmp_path / "out", Tuning(1, 1, 1, 16))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Tuning(steps=0)
    found = list(docstrings(['def f():\n    """too short"""', "not python (", f'"""{" ".join(["word"] * 12)}"""']))
    assert found == [" ".join(["word"] * 12) + "\n\n"]


def test_drafts_are_found_by_name_folder_and_family(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"main", "shallow"} <= set(drafts.drafts_of(()))
    monkeypatch.chdir(home)
    (home / "family").mkdir(exist_ok=True)
    if not (home / "family" / "flat").exists():
        (home / "family" / "flat").symlink_to(home / "flat")
    assert set(drafts.drafts_of((), "family")) == {"flat", *drafts.drafts_of(())}
    assert set(drafts.drafts_of(("main", str(home / "flat")), "family")) == {"main", "flat"}
    with pytest.raises(ValueError, match="different names"):
        drafts.drafts_of((str(home / "flat"), str(home / "family" / "flat")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        drafts.drafts_of(("nowhere",))


def test_the_point_that_ships_is_known_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "SHIPPED", tmp_path)
    assert drafts.point_of_designed() is None
    (tmp_path / "designed").mkdir()
    (tmp_path / "designed" / "config.json").write_text("{}")
    assert drafts.point_of_designed() is None
    for recipe, name in ((FAMILY["wide-2"], "wide-2"), (replace(FAMILY["wide-2"], seed=9), None)):
        (tmp_path / "designed" / "design.json").write_text(json.dumps({"design": asdict(recipe), "target": {}}))
        assert drafts.point_of_designed() == name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweep_350.Params(heads=("magic",)), "heads must be among"),
        (lambda: draft_throughput.Params(ks=(0,)), "ks must be at least 1, got 0"),
        (lambda: draft_throughput.Params(per_kind=4, repeats=3), "4 prompts of each kind cannot be dealt evenly to 3 turns"),
        (lambda: list(draft_parts.measure(draft_parts.Params(between="sweep_350"))), "timed by that experiment"),
        (lambda: predicted_vs_measured.Params(skip=0), "skip must be at least 1, got 0"),
        (lambda: draft_latency.Params(shapes=("gpt9",)), "shape 'gpt9' is not known"),
        (lambda: draft_parts.Params(temperature=-1.0), "temperature must be 0"),
        (lambda: draft_generalises.Params(steps=0), "steps must be at least 1"),
        (lambda: draft_quality.Params(k=0), "k must be at least 1, got 0"),
    ],
)
def test_nonsense_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_every_experiment_is_registered_with_a_smoke_preset() -> None:
    from flashspec.study import EXPERIMENTS

    counted = {"draft_quality", "predicted_vs_measured", "papers_table"}
    timed = {"draft_latency", "draft_throughput", "sweep_350", "draft_generalises", "draft_parts"}
    assert all(EXPERIMENTS[name].preset("smoke") for name in counted | timed)
    assert {name for name in counted | timed if EXPERIMENTS[name].measured} == timed

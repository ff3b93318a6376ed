"""`make gpu` on stand-ins: every part gives rows, a second run measures nothing, and a wrong result stops it."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashspec.study import gpu
from flashspec.study.experiments import real_shapes
from flashspec.study.experiments.real_shapes import EXPERIMENT, PARTS, SMOKE

ABSENT = ("click", "papermill", "nbformat", "matplotlib", "seaborn", "faiss", "dask")  # what such a machine need not have


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        for name in ABSENT:
            patch.setitem(sys.modules, name, None)
        assert gpu.main(["--stand-ins", "--results", str(root), "--minutes", "60"]) == 0
    return root


def test_every_part_is_stored_with_its_origin(tables: Path) -> None:
    assert len(list((tables / "real_shapes").glob("*.json"))) == len(list((tables / "real_shapes").glob("*.csv"))) == len(PARTS)
    rows = [row for part in PARTS for row in EXPERIMENT.run(replace(SMOKE, part=part), root=tables).rows]
    assert {row.part for row in rows} == set(PARTS)
    assert {row.agrees for row in rows if row.part == "correctness"} == {1}
    assert all(row.seconds > 0 and row.bandwidth > 0 and row.agrees == -1 for row in rows if row.part != "correctness")
    written = {row.what: row.tokens for row in rows if row.part == "end_to_end"}
    assert set(written.values()) == {SMOKE.new_tokens} and len(written) == 5


def test_the_parts_hold_what_a_round_is_made_of(tables: Path) -> None:
    """Both final tokens, with and without graphs, every length of a check, each span of the exits, and the roofline of each."""
    rows = {part: EXPERIMENT.run(replace(SMOKE, part=part), root=tables).rows for part in PARTS}
    said = {part: {(row.what, row.graphs) for row in found} for part, found in rows.items()}
    ends = {f"{head} {end}" for head in ("dense", "flash 8") for end in ("deferred", "eager")} | {"baseline deferred"}
    assert said["end_to_end"] == {(what, mode) for what in ends for mode in SMOKE.graphs}
    assert said["draft_step"] == {(what, mode) for what in ("body", "dense", "flash 8") for mode in SMOKE.graphs}
    assert said["verify"] == {(what, mode) for what in ("verify", "finalize") for mode in SMOKE.graphs}
    assert {row.rows for row in rows["verify"]} == set(range(1, SMOKE.k + 2))
    assert {what for what, _ in said["spans"]} == {"layers 0-2", "layers 2-4", "layers 4-16"}
    assert {row.shape for row in rows["transformers"]} == {SMOKE.draft, SMOKE.spans}
    texts = {f"{head} text" for head in ("baseline", "dense", "flash 8")}
    assert {what for what, _ in said["correctness"]} == texts | {"int4 product", "best of the probed blocks"}
    assert all(row.bytes > 0 for part in PARTS[1:] if part != "end_to_end" for row in rows[part])


def test_each_part_is_stored_before_the_next_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(params: real_shapes.Params) -> list[real_shapes.Row]:
        done = PARTS[: PARTS.index(params.part)]
        assert len(list((tmp_path / "real_shapes").glob("*.json"))) == len(done)
        return [real_shapes.Row(params.part, "tiny", "text", "auto", 1, 40, 1, 1.0, 0, 1.0, -1)]

    monkeypatch.setattr(real_shapes, "MEASURES", dict.fromkeys(PARTS, measure))
    assert list(gpu.steps(SMOKE, tmp_path, 60.0))[-1] == "done" and PARTS[:4] == (
        "correctness", "projection", "draft_step", "end_to_end",
    )  # fmt: skip


def test_what_a_part_made_is_gone_before_the_next_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two 32B shapes would not fit beside one another, and readers and what they recorded hold one another."""
    made = list[weakref.ref]()

    class Model:
        pass

    def measure(params: real_shapes.Params) -> list[real_shapes.Row]:
        assert not any(held() for held in made)
        model = Model()
        model.reader = model  # type: ignore[attr-defined]
        made.append(weakref.ref(model))
        return [real_shapes.Row(params.part, "tiny", "text", "auto", 1, 40, 1, 1.0, 0, 1.0, -1)]

    monkeypatch.setattr(real_shapes, "MEASURES", dict.fromkeys(PARTS, measure))
    gc.disable()
    try:
        assert list(gpu.steps(SMOKE, tmp_path, 60.0))[-1] == "done" and len(made) == len(PARTS)
    finally:
        gc.enable()


def test_nine_minutes_are_the_limit_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()
    monkeypatch.setattr(gpu, "steps", lambda base, root, minutes: asked.append(minutes) or iter(("done",)))
    assert gpu.main(["--stand-ins"]) == gpu.main(["--stand-ins", "--minutes", "2"]) == 0
    assert asked == [9.0, 2.0]


def test_a_second_run_measures_nothing(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_shapes, "MEASURES", {})
    assert gpu.main(["--stand-ins", "--results", str(tables)]) == 0


def test_a_run_that_was_stopped_continues(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**6, 50))
    said = list(gpu.steps(SMOKE, tables, 2.0, clock=lambda: next(ticks)))
    assert said[-1].startswith("stopped before") and "run it again to continue" in said[-1]
    assert list(gpu.steps(SMOKE, tables, 60.0))[-1] == "done"


def test_a_wrong_result_stops_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = real_shapes.Row("correctness", "tiny", "text", "auto", 1, 40, 0, 0.0, 0, 0.0, 0)
    monkeypatch.setattr(real_shapes, "MEASURES", {"correctness": lambda params: [row]})
    said = list(gpu.steps(SMOKE, tmp_path, 60.0))
    assert len(said) == 2 and said[1].startswith("stopped: text (tiny, graphs auto) differ")


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"part": "hope"}, "part must be among"), ({"graphs": ("on",)}, "graphs must be among"), ({"draft": "Q"}, "not known")],
)
def test_nonsense_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **wrong)

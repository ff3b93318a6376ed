"""`make gpu` on stand-ins: every part gives rows, a second run measures nothing, and a wrong result stops it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashspec.study import gpu
from flashspec.study.experiments import real_shapes
from flashspec.study.experiments.real_shapes import EXPERIMENT, PARTS, SMOKE


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("tables")
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

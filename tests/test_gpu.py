"""`flashspec gpu` on stand-ins: every part gives rows, a second run measures nothing, and a wrong result stops it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashspec.cli import gpu
from flashspec.cli.main import status
from flashspec.study import real_shapes
from flashspec.study.real_shapes import EXPERIMENT, PARTS, PRESETS, Row

pytest.importorskip("pandas")
SMOKE = PRESETS["smoke"]
HEADS = {("dense", 0), ("flash_best", 8)}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    assert status(["gpu", "--stand-ins", "--results", str(root), "--minutes", "60"]) == 0
    return root


def test_the_parts_hold_what_a_round_is_made_of(tables: Path) -> None:
    """Both final tokens, with and without graphs, every length of a check, each span of the exits, and the roofline of each."""
    found = {part: EXPERIMENT.stored(replace(SMOKE, part=part), tables).frame for part in PARTS}
    texts = found.pop("correctness")
    assert set(texts["group"]) == {"baseline text", "dense text", "flash_best text", "int4 product", "best of the probed blocks"}
    assert (texts["agrees"] == True).all()  # noqa: E712
    for frame in found.values():
        assert (frame["seconds"] > 0).all() and (frame["bandwidth"] > 0).all() and frame["agrees"].isna().all()
        assert (frame["bytes"] > 0).all() or set(frame["piece"]) == {"text"}
    for part in ("draft_step", "end_to_end", "verify", "spans"):
        shared = found[part].drop(columns=["seconds", "turn", "bandwidth"])
        modes = [frame.drop(columns="graphs").values.tolist() for _, frame in shared.groupby("graphs")]
        assert set(shared["graphs"]) == set(SMOKE.graphs) and str(modes[0]) == str(modes[1])
    drafts, ends = found["draft_step"], found["end_to_end"]
    assert set(drafts["piece"]) == {"body", "burst"} and set(drafts.loc[drafts["piece"] == "burst", "k"]) == {SMOKE.k}
    for frame in (found["projection"], drafts[drafts["piece"] == "burst"], ends[ends["k"] > 0]):
        assert set(zip(frame["head"], frame["probes"], strict=True)) == HEADS
    assert set(zip(ends["head"], ends["finalize"], strict=True)) == {
        ("", "deferred"), *((head, end) for head, _ in HEADS for end in ("deferred", "eager")),
    }  # fmt: skip
    assert set(ends["tokens"]) == {SMOKE.new_tokens}
    checks = found["verify"]
    assert set(checks["format"]) == {"int4"} and set(checks.loc[checks["piece"] == "check", "rows"]) == set(range(1, SMOKE.k + 2))
    assert set(found["spans"]["group"]) == {"layers 0-2", "layers 2-4", "layers 4-16"}


def test_each_part_is_stored_and_what_it_made_is_gone_before_the_next_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two 32B shapes would not fit beside one another, and readers and what they recorded hold one another."""
    made = list[weakref.ref]()

    class Model:
        pass

    def measure(params: real_shapes.Params) -> list[Row]:
        assert not any(held() for held in made)
        assert len(list((tmp_path / "real_shapes").glob("*.parquet"))) == len(made) == PARTS.index(params.part)
        model = Model()
        model.reader = model  # type: ignore[attr-defined]
        made.append(weakref.ref(model))
        return [Row(params.part, "tiny", "", "", 1.0, 0, agrees=True)]

    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=measure))
    gc.disable()
    try:
        assert list(gpu.steps(SMOKE, tmp_path, 60.0))[-1] == "done" and len(made) == len(PARTS)
    finally:
        gc.enable()


def test_a_second_run_measures_nothing_and_a_stopped_one_continues(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=None))
    ticks = iter(range(0, 10**6, 50))
    said = list(gpu.steps(SMOKE, tables, 2.0, clock=lambda: next(ticks)))
    assert said[-1].startswith("stopped before") and "run it again to continue" in said[-1]
    assert list(gpu.steps(SMOKE, tables, 60.0))[-1] == "done"


def test_nine_minutes_are_the_limit_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()
    monkeypatch.setattr(gpu, "steps", lambda base, root, minutes: asked.append(minutes) or iter(("done",)))
    assert status(["gpu", "--stand-ins"]) == status(["gpu", "--stand-ins", "--minutes", "2"]) == 0
    assert asked == [9.0, 2.0]


def test_a_wrong_result_stops_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Row("correctness", "tiny", "", "", 0.0, 0, group="text", graphs="auto", agrees=False)
    monkeypatch.setattr(gpu, "EXPERIMENT", replace(EXPERIMENT, function=lambda params: [wrong]))
    said = list(gpu.steps(SMOKE, tmp_path, 60.0))
    assert len(said) == 2 and said[1].startswith("stopped: text (tiny, graphs auto) differ")


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert status(["gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"part": "hope"}, "part must be among"), ({"graphs": ("on",)}, "graphs must be among"), ({"draft": "Q"}, "not known")],
)
def test_nonsense_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **wrong)

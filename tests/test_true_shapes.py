"""Pages of true shapes say what a table holds, and that nothing was observed where there is no table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from flashspec.models.synthetic import shape
from flashspec.study import loading, notebooks, real_shapes, tables
from flashspec.study.real_shapes import EXPERIMENT, Params, Row, Split

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
MACHINE = {"machine": {"cpu": "a made-up processor", "cores": 2, "isa": "", "device": "a made-up GPU"}, "date": "2026-01-01"}


def stored(root: Path) -> dict:
    """A correctness table and a table of draft steps whose median, 2 ms, is twice what the bytes allow."""
    rows = {
        "correctness": [Row("correctness", "tiny", "", "", 0.0, 0, group="text", graphs="auto", agrees=True)],
        "draft_step": [
            Row("burst", "Q", "flash", "bfloat16", s, i, bytes=1000, bandwidth=1e6, probes=8, graphs="auto")
            for i, s in enumerate((1e-3, 2e-3, 9e-3))
        ],
    }
    for part, found in rows.items():
        tables.write(EXPERIMENT.place(replace(Params(), part=part), root), Row, found, MACHINE)
    return real_shapes.found(Params(), root)


def test_a_table_gives_medians_and_shares_of_the_roofline(tmp_path: Path) -> None:
    found = stored(tmp_path)
    assert set(found) == {"correctness", "draft_step"}
    line = real_shapes.costs(found).loc["burst"]
    assert (line["what"], line["ms"], line["roofline ms"], line["of roofline"]) == ("flash 8", 2.0, 1.0, 0.5)
    assert real_shapes.agreements(found).loc["text", "agrees"]


def test_without_a_table_nothing_is_claimed(tmp_path: Path) -> None:
    found = real_shapes.found(Params(), tmp_path)
    assert found == {}
    assert real_shapes.costs(found).index.tolist() == real_shapes.agreements(found).index.tolist() == [real_shapes.NOT_YET]
    assert loading.loads(None).index.tolist() == [loading.worst_load(None)] == [loading.NOTHING]


def test_a_4_bit_pass_reads_about_a_quarter_of_the_layers() -> None:
    dense, packed, config = real_shapes.weights("Qwen3-32B"), real_shapes.weights("Qwen3-32B-AWQ"), shape("Qwen3-32B")
    head = 2 * config.head_parameters
    assert dense == (2 * config.body_parameters + head, 64)
    assert (packed.bytes - head) / (dense.bytes - head) == pytest.approx((0.5 + 4 / 128) / 2)


def test_predictions_are_labelled_and_fall_with_the_devices() -> None:
    table = real_shapes.predicted(Params(), Split((1, 2, 8), 4e12, 10e-6))
    assert all(column.startswith("predicted") for column in table.columns) and table.index.tolist() == [1, 2, 8]
    assert table["predicted target pass, ms"].is_monotonic_decreasing
    assert table["predicted speedup"].is_monotonic_decreasing
    one = real_shapes.weights("Qwen3-32B-AWQ").bytes / 4e12 * 1e3
    assert table["predicted target pass, ms"].iloc[0] == pytest.approx(one, abs=1e-3)
    slow = real_shapes.predicted(Params(), Split((1, 2), 4e12, 1.0))
    assert not slow["predicted target pass, ms"].is_monotonic_decreasing


def test_the_worst_load_is_told(tmp_path: Path) -> None:
    rows = [loading.Row("awq", 1000, 100, 100 + peak, 900, 1.0, i) for i, peak in enumerate((1000, 1150, 1050))]
    tables.write(loading.EXPERIMENT.place(loading.Params(), tmp_path), loading.Row, rows, MACHINE)
    results = loading.EXPERIMENT.stored(root=tmp_path)
    assert loading.worst_load(results) == "1.15"
    assert loading.loads(results)["peak over files"].tolist() == [1.15]


def test_memory_is_counted_by_hand() -> None:
    """Llama-3.1-8B: 8.03 billion parameters of two bytes, a cache of 32 layers, two of 8 heads of 128, two bytes each."""
    line = real_shapes.memory(("Llama-3.1-8B", "Qwen3-0.6B")).loc["Llama-3.1-8B"]
    assert line["bfloat16, GB"] == pytest.approx(16.06, abs=0.02)
    assert line["cache of 1000 tokens, GB"] == pytest.approx(1e-6 * 32 * 2 * 8 * 128 * 2, abs=0.005)
    ends = 2 * 2 * shape("Llama-3.1-8B").head_parameters / 1e9
    assert 0.25 < (line["4 bits, GB"] - ends) / (line["bfloat16, GB"] - ends) < 0.28


def test_the_how_tos_parameters_are_those_of_loading() -> None:
    said = notebooks.parameters(NOTEBOOKS / "11_your_models.ipynb")
    meant = vars(loading.Params())
    assert {name: said[name].default for name in meant} == meant

"""Pieces are timed at any shape with any head, bytes as a pass reads them, every shape's pieces in turns."""

import pytest

from flashspec.study import run
from flashspec.study.parts import EXPERIMENT, PIECES

pytest.importorskip("pandas")
QUICK = {"repeats": 2, "past": 8, "cold_megabytes": 1}


def frame(tmp_path, **changes):
    return run("parts", {**QUICK, **changes}, root=tmp_path).frame


def test_every_piece_is_timed_with_every_head(tmp_path):
    found = frame(tmp_path, piece=PIECES, shape="reference-shallow", head=("dense", "int8", "flash"), rows=(1, 4), k=3)
    assert set(found["piece"]) == set(PIECES) and (found["seconds"] > 0).all()
    sizes = found.drop_duplicates(["piece", "head", "rows"]).set_index(["piece", "head", "rows"])["bytes"]
    assert sizes["step", "flash", 1] < sizes["step", "int8", 1] < sizes["step", "dense", 1]
    assert sizes["step", "dense", 1] == sizes["body", "dense", 1] + sizes["head", "dense", 1]
    assert sizes["burst", "dense", 1] == 3 * sizes["step", "dense", 1]
    assert set(found.loc[found["head"] == "int8", "format"]) == {"int8"}
    assert set(found.groupby(["piece", "head", "rows"])["turn"].apply(tuple)) == {(0, 1)}


def test_a_projection_needs_no_model_and_too_many_probes_are_left_out(tmp_path):
    sizes = {"probes": (8, 999), "shortlist": (64, 9999)}
    found = frame(tmp_path, piece="projection", shape="512x64", head=("dense", "flash", "fr_spec"), **sizes)
    assert set(zip(found["head"], found["probes"], found["shortlist"], strict=True)) == {
        ("dense", 0, 0), ("flash", 8, 0), ("fr_spec", 0, 64)
    }  # fmt: skip
    assert (found["vocab"] == 512).all() and found["layers"].isna().all()


def test_spreads_keep_the_parameters_and_are_timed_in_one_point(tmp_path):
    found = frame(tmp_path, piece="body", shape="reference-target", spread=(1, 4), head="dense")
    deep, wide = (found[found["layers"] == layers].iloc[0] for layers in (16, 4))
    assert abs(wide.body / deep.body - 1) < 0.1 and wide.hidden > deep.hidden


def test_formats_of_a_check_differ_in_bytes(tmp_path):
    found = frame(tmp_path, piece="check", shape="reference-shallow", format=("bfloat16", "float32", "int4"), rows=2)
    size = found.groupby("format")["bytes"].first()
    assert size["int4"] < size["bfloat16"] < size["float32"]


@pytest.mark.parametrize(("changes", "word"), [
    ({"piece": "song"}, "piece must be among"),
    ({"piece": "step", "shape": "512x64"}, "projection alone"),
    ({"shape": "no-such-model"}, "no-such-model"),
    ({"rows": 0}, "rows must be at least 1"),
])  # fmt: skip
def test_a_bad_choice_is_refused_in_words(changes, word):
    with pytest.raises(ValueError, match=word):
        EXPERIMENT.parse(changes)

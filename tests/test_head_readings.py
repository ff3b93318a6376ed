"""Readings about draft heads give the numbers that were put into a table."""

from __future__ import annotations

import pytest
import tables_heads

pytest.importorskip("pandas")

from flashspec.study import head_readings
from flashspec.study.readings import Missing
from flashspec.theory import amdahl


@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_calibration_is_told_by_the_misses_it_leaves(kept):
    assert head_readings.misses_left(tables_heads.recall(kept).frame) == pytest.approx(kept)


def test_agreement_within_a_share_of_the_rows_says_whether_it_is_enough():
    frame = tables_heads.recall().frame
    assert head_readings.reached(frame, 0.985, 0.2).startswith("reached: 0.9900 at 20.0 % of the rows")
    assert head_readings.reached(frame, 0.985, 0.15).startswith("not reached: 0.9800")
    assert head_readings.agreement_of(frame, "fr_spec") == pytest.approx(0.9)
    with pytest.raises(Missing, match="at most 1%"):
        head_readings.best_within(frame, 0.01)


def test_clusterings_and_bands_are_told_apart():
    frame = tables_heads.recall().frame
    assert head_readings.metrics_apart(frame) == pytest.approx(0.01)
    table = head_readings.bands(frame, head="flash", plan="default", calibrated=False, **head_readings.SHIPPED)
    assert list(table["agreement"]) == pytest.approx([560 / 600, 1.0, 1.0])
    assert table[["required_50", "required_90", "required_99"]].to_numpy().tolist() == [[50, 90, 99]] * 3


def test_the_cheapest_head_depends_on_the_shape_and_on_the_probes_asked_for():
    frame = tables_heads.cost().frame
    assert head_readings.cheapest_words(frame, "int8", 256) == "16384 x 384"
    assert head_readings.cheapest_words(frame, "flash", 256) == "16384 x 1024"
    assert head_readings.cheapest_words(frame, "int8", 64) == head_readings.NOWHERE
    assert head_readings.left_out(frame) == "262144 x 5120"
    assert head_readings.cost_gain(frame, "flash", vocab=16384, hidden=1024, size=64).value == pytest.approx(5.0)
    assert head_readings.costs(frame).query("head == 'dense'")["fraction"].iloc[0] == pytest.approx(0.5, rel=0.05)


def test_a_gain_stands_beside_the_ratio_of_bytes():
    frame, place = tables_heads.cost().frame, {"vocab": 16384, "hidden": 1024, "size": 256}
    assert head_readings.byte_limit(frame, "flash", **place) == pytest.approx(2.5)
    assert head_readings.beside_limit(frame, "flash", **place) == "100 % of 2.5×"
    assert head_readings.beside_limit(frame, "flash", **{**place, "hidden": 384}) == "50 % of 2.5×"


@pytest.mark.parametrize(("fixed", "pace"), [(0.2e-3, 1.25), (0.0, 1.0)])
def test_a_call_is_told_apart_from_what_it_reads(fixed, pace):
    frame = tables_heads.calls(fixed, pace).frame
    found = head_readings.calls(frame).set_index("head").loc["flash"]
    assert (found["fixed"], found["pace"]) == (pytest.approx(fixed, abs=1e-9), pytest.approx(pace))
    assert head_readings.speed_of(frame, "flash") == pytest.approx(80 / pace)
    place = {"vocab": 16384, "hidden": 1024, "size": 64}
    assert head_readings.fixed_of(frame, "flash", **place) == f"{1e3 * fixed:.2f} of {1e3 * (fixed + pace * 1e-3):.2f} ms"


def test_a_build_is_the_sum_of_its_parts():
    line = head_readings.build_of(tables_heads.build().frame, 16000, 1024, 16)
    assert line["seconds"] == pytest.approx(1000.0) and line["clustering_seconds"] == pytest.approx(500.0)
    with pytest.raises(Missing, match="cluster_size = 8"):
        head_readings.build_of(tables_heads.build().frame, 16000, 1024, 8)


def test_what_a_head_leads_is_listed_in_order():
    frame = tables_heads.tar().frame
    assert head_readings.slower_than(frame, "int8", 0.7) == "flash, dense, plain decoding, in_context"
    assert head_readings.slower_than(frame, "in_context", 0.7) == "none"


def test_the_fastest_writer_is_named_even_where_it_is_a_plain_int8_head():
    frame = tables_heads.tar().frame
    assert head_readings.winner(frame, 0.7) == "int8; over flash, P = 64: 1.09× (1.09 to 1.09)"
    assert head_readings.wins_of(frame, "int8") == "T = 0, T = 0.7, T = 1"
    slow = tables_heads.tar(int8=105.0).frame
    assert head_readings.wins_of(slow, "int8") == head_readings.NOWHERE
    assert head_readings.wins_of(slow, "int8", "flash") == "T = 0, T = 0.7, T = 1"
    assert head_readings.lead_over(frame, "int8", 0.7) == "it is the fastest"
    assert head_readings.lead_over(slow, "int8", 0.7) == "1.05× (1.05 to 1.05)"
    table = head_readings.writers(frame)
    assert set(table.query("head == 'dense'")["tar"]) == {2.5} and set(table.query("head == 'baseline'")["tar"]) == {1.0}


def test_probes_chosen_by_throughput_and_by_agreement_differ():
    frame = tables_heads.tar().frame
    fast, agreeing = head_readings.choices(frame, 0.0, 0.985)
    assert (fast["probes"], agreeing["probes"]) == (64, 256)
    assert head_readings.choice_gain(frame, 0.0, 0.985).value == pytest.approx(1.1)
    assert head_readings.choice_gain(frame, 0.0, 0.9).value == pytest.approx(1.0)


def test_the_default_probes_stand_beside_the_fastest():
    frame = tables_heads.tar().frame
    assert head_readings.beside_default(frame, 64) == "the default is the fastest; over P = 256: 1.10× (1.10 to 1.10)"
    assert head_readings.beside_default(frame, 256) == "P = 64 is the fastest; over the default: 1.10× (1.10 to 1.10)"
    assert head_readings.beside_default(frame, 32) == "the default, P = 32, is not in this table"
    assert head_readings.beside_default(frame[frame["probes"] != 256], 64) == "the default is the fastest"


def test_the_fastest_is_named_for_every_kind_of_text():
    frame = tables_heads.tar().frame
    assert head_readings.winners_by_kind(frame, 0.0) == "code: int8; prose: int8"
    slow = (frame["head"] == "int8") & (frame["kind"] == "code")
    frame.loc[slow, "seconds"] *= 2
    assert head_readings.winners_by_kind(frame, 0.0) == "code: flash, P = 64; prose: int8"


def test_depth_gains_stand_beside_amdahls():
    table = head_readings.depth_gains(tables_heads.depth().frame)
    assert list(table["share"]) == pytest.approx([0.8, 0.5, 0.125])
    assert list(table["measured"]) == pytest.approx([amdahl(share, 4.0) for share in table["share"]])
    assert head_readings.off_amdahl(tables_heads.depth().frame) == pytest.approx(0.0, abs=1e-9)
    assert head_readings.off_amdahl(tables_heads.depth(slower=2.0).frame) == pytest.approx(0.5)

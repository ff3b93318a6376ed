"""Readings give the numbers that were put into a table; figures are functions of the table alone."""

from __future__ import annotations

import pytest
import tables
import tables_drafts
import tables_heads
import tables_hispec

pytest.importorskip("seaborn")

from flashspec.measure.bench import Refused
from flashspec.study import figures, papers, readings
from flashspec.theory import amdahl

SETTING = {"draft": "main", "temperature": 1.0, "rule": "coupling"}


def test_projection_gain_is_against_the_fastest_dense_head() -> None:
    gain = readings.projection_gain(tables.projection(gain=4.0).frame, "reference", 256)
    assert gain.value == pytest.approx(4.0)
    assert gain.shows_difference


def test_a_head_of_equal_speed_shows_no_difference() -> None:
    assert not readings.projection_gain(tables.projection(gain=1.0).frame, "reference", 256).shows_difference


def test_step_gain_follows_from_the_head_share() -> None:
    frame = tables.draft_step(share=0.5, gain=4.0).frame
    assert readings.head_share(frame, "reference") == pytest.approx(0.5)
    assert readings.step_gain(frame, "reference", 256).value == pytest.approx(amdahl(0.5, 4.0))


def test_methods_compete_at_their_best_block() -> None:
    frame = tables.end_to_end().frame
    assert set(readings.best(frame, finalize="eager", **SETTING)["k"]) == {4}
    assert readings.method_gain(frame, "flash", "dense", finalize="eager", **SETTING).value == pytest.approx(1.1)
    assert readings.deferral_gain(frame, "dense", **SETTING).value == pytest.approx(1.2)


def test_a_speedup_between_different_texts_is_refused() -> None:
    frame = tables.end_to_end().frame
    frame.loc[frame["method"] == "flash", ["text_digest", "twin_digest"]] = "another text"
    with pytest.raises(Refused, match="float32 twin"):
        readings.method_gain(frame, "flash", "dense", finalize="eager", **SETTING)
    assert readings.verdict(frame, "flash", "dense", finalize="eager", **SETTING).startswith("refused")
    assert readings.method_gain(frame, "dense", "baseline", finalize="eager", **SETTING).value > 1


def test_one_wrong_twin_among_several_is_enough_to_refuse() -> None:
    frame = tables.end_to_end().frame
    flash = (frame["method"] == "flash") & (frame["kind"] == "code")
    for first_or_last in (frame[flash].index[0], frame[flash & (frame["twin_digest"] != "")].index[-1]):
        spoiled = frame.copy()
        spoiled.loc[first_or_last, "twin_digest"] = "another text"
        row = spoiled.loc[first_or_last]
        setting = {"draft": row["draft"], "temperature": row["temperature"], "rule": row["rule"], "finalize": row["finalize"]}
        with pytest.raises(Refused, match="float32 twin"):
            readings.method_gain(spoiled, "flash", "dense", **setting)


def test_an_explained_tie_is_not_refused_and_a_defect_is() -> None:
    frame = tables.end_to_end().frame
    parted = (frame["method"] == "flash") & (frame["kind"] == "code")
    frame.loc[parted, ["text_digest", "divergence_at", "gap", "noise"]] = ["another text", 5, 0.01, 0.01]
    assert readings.method_gain(frame, "flash", "dense", finalize="eager", **SETTING).value == pytest.approx(1.1)
    frame.loc[parted, "gap"] = 1.0
    with pytest.raises(Refused, match="defect"):
        readings.method_gain(frame, "flash", "dense", finalize="eager", **SETTING)


def test_predictions_use_parts_and_counts_only() -> None:
    frame = tables.end_to_end().frame
    slower = frame.assign(seconds=2 * frame["seconds"])
    assert list(readings.predictions(frame)["predicted"]) == list(readings.predictions(slower)["predicted"])
    assert readings.predictions(frame).query("k == 4 and finalize == 'eager'")["predicted"].iloc[0] == pytest.approx(
        2 * (2e-3 + 160 * 1e-3 + 40 * 7e-3)
    )


def test_a_ledger_closes_and_one_that_does_not_is_seen() -> None:
    frame = tables.ledger().frame
    assert readings.closure(frame) == pytest.approx(0.0)
    assert readings.closure(frame[frame["part"] != "host"]) > 0.03
    assert readings.ledger(frame).loc[("main", "dense", "deferred"), "verify body"] == pytest.approx(5.0)


def test_acceptance_is_told_with_its_rule() -> None:
    frame = tables.acceptance().frame
    assert readings.kept_share(frame, rule="coupling") == pytest.approx(0.5)
    assert readings.kept_share(frame, rule="speculative") == pytest.approx(0.75)
    assert readings.repeated_share(frame, temperature=0.0) == pytest.approx(0.5)


def test_a_row_costs_what_was_put_in() -> None:
    assert readings.rows_ratio(tables.formats().frame, "int4", 5) == pytest.approx(3.0)
    assert readings.format_ratio(tables.formats().frame, "int4", "bf16") == pytest.approx(1.0)


def test_peers_are_compared_on_equal_texts_only() -> None:
    frame = tables.peers().frame
    assert readings.peer_verdict(frame, "assisted", "bfloat16").startswith("2.00×")
    frame.loc[frame["engine"] == "transformers", ["text_digest", "twin_digest"]] = "b"
    assert readings.peer_verdict(frame, "assisted", "bfloat16").startswith("refused")


def test_a_missing_row_is_named() -> None:
    with pytest.raises(readings.Missing, match="shape = opt"):
        readings.projection_gain(tables.projection().frame, "opt", 256)


def test_too_few_repeats_give_no_interval() -> None:
    frame = tables.projection().frame
    gain = readings.projection_gain(frame[frame["repeat"] < 2], "reference", 256)
    assert "too few repeats" in readings.words(gain)


def test_the_thesis_agrees_with_itself() -> None:
    ratio = papers.thesis("projection_dense_ms") / papers.thesis("projection_flash_ms")
    assert papers.thesis("projection") == pytest.approx(ratio, rel=1e-3)
    assert amdahl(papers.head_share(), papers.thesis("projection")) == pytest.approx(papers.thesis("draft_step"), rel=1e-3)


DRAWN = {
    "projection": lambda: figures.projection(tables.projection()),
    "probes": lambda: figures.probes(tables.projection()),
    "draft_step": lambda: figures.draft_step(tables.draft_step()),
    "dilution": lambda: figures.dilution(tables.projection(), tables.draft_step()),
    "throughput": lambda: figures.throughput(tables.end_to_end()),
    "blocks": lambda: figures.blocks(tables.end_to_end()),
    "acceptance": lambda: figures.acceptance(tables.acceptance()),
    "prediction": lambda: figures.prediction(tables.end_to_end()),
    "formats": lambda: figures.formats(tables.formats()),
    "peers": lambda: figures.peers(tables.peers()),
    "ledger": lambda: figures.ledger(tables.ledger()),
    "waterfall": lambda: figures.waterfall(tables.projection(), tables.draft_step(), tables.end_to_end()),
    **tables_heads.DRAWN,
    **tables_hispec.DRAWN,
    **tables_drafts.DRAWN,
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_names_its_source(name: str) -> None:
    picture = DRAWN[name]()
    small_print = picture.figure.get_supxlabel()
    assert f"figures.{name}" in small_print
    assert tables.MACHINE in small_print


@pytest.mark.parametrize("name", ["throughput", "waterfall"])
def test_the_same_table_gives_the_same_picture(name: str) -> None:
    once, again = DRAWN[name]().svg, DRAWN[name]().svg
    assert once == again
    assert "<dc:date>" not in once


def test_another_table_gives_another_picture() -> None:
    assert figures.projection(tables.projection(4.0)).svg != figures.projection(tables.projection(5.0)).svg


def test_every_figure_is_drawn_here() -> None:
    assert set(DRAWN) == set(figures.__all__)

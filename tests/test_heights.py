"""Readings of hierarchies give the numbers that were put into a table."""

from __future__ import annotations

from pathlib import Path

import pytest
import tables_hispec as made

from flashspec.measure.bench import Refused
from flashspec.study import heights, screening
from flashspec.study.experiment import stored
from flashspec.study.readings import Missing, where

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results"
HOT = {"temperature": 1.0, "rule": "speculative"}
COLD = {"temperature": 0.0, "rule": "coupling"}


def test_the_fastest_schedule_is_chosen():
    rows = heights.tuned(made.grid().frame, "hispec", temperature=0.0, rule="speculative")
    assert set(zip(rows["draft_exit"], rows["verify_exit"], rows["n_d"], rows["n_i"], strict=True)) == {(2, 4, 2, 4)}
    assert heights.schedule(made.grid().frame, "hispec", temperature=0.0) == "exits 2 and 4, N_d = 2, N_i = 4"


def test_gains_are_between_tuned_methods():
    frame = made.contest().frame
    assert heights.gain(frame, "dense", "baseline", **HOT).value == pytest.approx(1.4)
    assert heights.gain(frame, "dense", "baseline", **COLD).value == pytest.approx(1.4)
    assert heights.gain_verdict(frame, "dense", "baseline", **COLD).startswith("1.40×")
    with pytest.raises(Missing):
        heights.gain(frame, "magic", "baseline", **HOT)


def test_a_gain_between_different_texts_is_refused_where_texts_are_owed():
    frame = made.contest().frame
    frame.loc[frame["method"] == "hispec", ["text_digest", "twin_digest"]] = "another text"
    with pytest.raises(Refused, match="float32 twin"):
        heights.gain(frame, "hispec", "baseline", **COLD)
    assert heights.gain(frame, "hispec", "baseline", **HOT).value > 1


def test_losses_are_told():
    told = heights.losses(made.contest().frame[lambda f: f["method"] != "hispec_flash"])
    assert told == [f"T = {t}, prose to dense draft head (1.17×)" for t in ("0", "1 under speculative")]


def test_the_verifiers_errors_are_shares_of_what_it_judged():
    row = heights.exits(made.quality().frame).iloc[0]
    assert (row["agreement"], row["top_5"], row["overlap_share"]) == pytest.approx((0.6, 0.8, 0.55))
    assert (row["false_accept"], row["false_reject"]) == pytest.approx((0.2, 0.2))


def test_the_heads_share_falls_with_depth():
    frame = made.flash().frame
    assert heights.head_share(frame, 2) == pytest.approx(0.5)
    assert heights.head_share(frame, 3) == pytest.approx(1 / 3)


def test_passes_leave_the_prompt_out():
    table = heights.passes(made.passes().frame)
    assert set(table[table["method"] == "hispec"]["found"]) == {20.0, 26.0}
    assert list(table["found"]) == list(table["expected"])


def test_predictions_use_costs_alone():
    frame = made.contest().frame
    table = heights.predictions(frame)
    assert (table["predicted_rate"] / table["measured_rate"]).tolist() == pytest.approx([1.1] * len(table))
    slower = heights.predictions(frame.assign(seconds=2 * frame["seconds"]))
    assert slower["predicted_rate"].tolist() == table["predicted_rate"].tolist()


def test_memory_is_told_over_plain_decoding_and_the_index_apart():
    table = heights.memory(made.memory().frame)
    assert where(table, method="hispec")["ratio"].tolist() == pytest.approx([1.05, 1.05])
    assert where(table, method="hispec")["index"].tolist() == pytest.approx([0.25, 0.25])


def test_the_stored_hierarchies_keep_at_most_a_tenth_more_at_both_shapes():
    table = heights.memory(stored("hierarchy_memory", root=RESULTS).frame)
    assert set(table["shape"]) == {"reference-target", "Qwen3-0.6B"}
    assert where(table, reuse=True)["ratio"].max() <= 1.1
    assert where(table, method="hispec_flash")["index"].min() > 0


def test_what_flash_brings_stands_beside_what_was_foretold():
    table = heights.flash_gains(made.flash().frame, "hispec")
    assert set(table["draft_exit"]) == {2, 3} and table["foretold"].tolist() == pytest.approx(table["measured"].tolist())
    assert where(table, draft_exit=2)["measured"].tolist() == pytest.approx([1.1, 1.1])
    assert heights.gate_words(made.flash().frame, "hispec").startswith("4 of 4 settings")
    slow = made.flash().frame.assign(predicted=1.0)
    assert heights.gate_words(slow, "hispec").startswith("2 of 4 settings")


def test_the_heads_share_alone_foretells_amdahls_gain():
    frame = made.flash().frame
    frame = frame.assign(head_seconds=[1e-4 if head == "flash" else 5e-4 for head in frame["head"]])
    frame = frame.assign(actions_1=30, actions_2=10)
    line = where(heights.flash_gains(frame, "hispec"), draft_exit=2).iloc[0]
    spent = 120 * 1e-3 + 30 * 2e-3 + 10 * 8e-3
    assert line["by_share"] == pytest.approx(1 / (1 - 120 * 4e-4 / spent))
    assert where(heights.flash_gains(frame, "hispec"), draft_exit=3)["by_share"].iloc[0] < line["by_share"]


def test_where_flash_must_pay_is_told_and_a_broken_promise_is_seen():
    frame = made.flash().frame
    assert heights.must_words(frame, "hispec").startswith("it pays in 2 of 2 such settings, 1.10×")
    broken = (frame["head"] == "flash") & (frame["draft_exit"] == 2) & (frame["temperature"] == 0)
    frame.loc[broken, "seconds"] *= 2
    assert heights.must_words(frame, "hispec").startswith("it pays in 1 of 2 such settings")
    frame.loc[frame["head"] == "flash", "predicted"] /= 2
    assert heights.must_words(frame, "hispec").startswith("no setting is foretold to gain more")


def test_the_screening_finds_the_prices_and_keeps_the_schedules_that_are_foretold_fastest():
    frame = made.grid().frame
    assert screening.prices(where(frame, stage="screened"), 16) == pytest.approx(made.PRICES, rel=1e-6)
    table = screening.foretold(frame, 16)
    best = table.loc[table.groupby("method")["rate"].idxmax()]
    chosen = screening.finalists(table, 1)
    assert {tuple(cells) for cells in best[screening.NUMBERS].itertuples(index=False)} <= chosen
    assert len([c for c in chosen if c[0] == "hispec"]) == 4 and len([c for c in chosen if c[0] == "self_speculation"]) == 1
    assert len(screening.finalists(table, 99)) == len(table)

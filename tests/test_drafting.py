"""What was planted in made-up races of drafts is what the readings find: order, correlation, predictions, shapes, costs."""

import math

import numpy as np
import pytest

pytest.importorskip("pandas")

from tables import line as verdict_of
from tables_drafts import ALPHA, LAYERS, PER_BYTE, PER_LAYER, READ, STEP, TURNS, family, pieces, row, runs

from flashspec.study import compare, designing, drafting, papers, predictions
from flashspec.theory import tokens_per_check


def test_the_planted_order_of_drafts_is_found():
    frame = runs()
    seconds = {d: min(row(d, k, 0, 0.0).seconds for k in (1, 2, 4)) for d in LAYERS}
    table = drafting.beside_plain(frame)
    greedy = table[table["temperature"] == 0.0]
    assert list(greedy["draft"]) == sorted(LAYERS, key=seconds.__getitem__)
    assert np.allclose(greedy["ratio"], (READ + 100 * STEP) / greedy["draft"].map(seconds))
    assert np.allclose(greedy["tar"], [tokens_per_check(ALPHA[d], 4) for d in greedy["draft"]])
    over = drafting.against(frame, "wide")
    assert set(over["over"]) == set(LAYERS) - {"wide"} and len(over) == 2 * 5
    assert verdict_of(over, over="deeper", temperature=1.0).ratio == pytest.approx(seconds["deeper"] / seconds["wide"])
    assert drafting.deepest(frame, "wide") == "deeper" and drafting.deepest(frame, "deeplarge") == ""
    assert drafting.deepest(frame, "nowhere") == ""


def test_a_draft_that_ran_under_two_names_counts_once(monkeypatch):
    monkeypatch.setattr(drafting, "point_of_designed", lambda: "middle")
    both = runs().replace({"draft": {"deep": drafting.DESIGNED}})
    assert drafting.DESIGNED not in set(drafting.pace(both)["draft"]) and drafting.designed(both) == drafting.DESIGNED
    assert drafting.designed(runs()) == "middle"
    alone = runs(drafts=("wide", "deep")).replace({"draft": {"deep": drafting.DESIGNED}})
    assert drafting.DESIGNED in set(drafting.pace(alone)["draft"])


def test_correlations_have_the_planted_signs():
    found = drafting.correlations(drafting.merits(runs(), family()))
    at = {"temperature": 1.0, "outcome": "tar"}
    assert verdict_of(found, merit="perplexity", **at).value == 1.0 and verdict_of(found, merit="layers", **at).value < 0
    assert math.isnan(verdict_of(found, merit="chosen", **at).value)
    other = drafting.correlations(drafting.merits(runs(), family(-1.0)))
    assert verdict_of(other, merit="perplexity", **at).value == -1.0
    few = drafting.correlations(drafting.merits(runs(drafts=("wide", "deep")), family()))
    assert set(few["verdict"]) == {"too few drafts that differ"}


def test_runs_that_take_what_the_model_says_are_predicted_and_slower_ones_are_not():
    frame = runs()
    table = predictions.predictions(frame)
    assert len(table) == 2 * 2 * 6 * 3 and np.allclose(predictions.off_by(table), 0) and (table["prompts"] == 3).all()
    slow = predictions.errors(predictions.predictions(frame.assign(seconds=1.25 * frame["seconds"])))
    assert np.allclose(slow["median"], 20) and np.allclose(slow["bias"], -20) and (slow["within"] == 0).all()


def test_a_prediction_takes_its_counts_from_the_other_half():
    frame = runs(spread=0.0)
    lucky = frame["prompt"] % 2 == 1
    doubled = frame.assign(**{name: frame[name] * (1 + lucky) for name in ("rounds", "drafted", "actions_1")})
    plain, moved = predictions.predictions(frame), predictions.predictions(doubled)
    ratio = moved["predicted"] / plain["predicted"]
    own = moved["hindsight"] / plain["hindsight"]
    assert ratio.max() > 1.5 and own.max() > 1.5 and ((ratio > 1.1) != (own > 1.1)).all()
    spread = predictions.predictions(runs(spread=0.1))
    assert np.allclose(predictions.off_by(spread, "hindsight"), 0) and predictions.off_by(spread).abs().max() > 1


def test_settings_on_one_prompt_and_runs_without_parts_are_left_out():
    assert predictions.predictions(runs(prompts=1)).empty
    assert predictions.predictions(runs().assign(burst_seconds=np.nan)).empty
    assert predictions.errors(predictions.predictions(runs(prompts=1)))["median"].isna().all()


def test_the_pick_is_the_fastest_where_the_model_is_right_and_loses_where_it_is_not():
    right = predictions.planned(predictions.predictions(runs()))
    assert (right["picked"] == right["fastest"]).all() and (right["loss"] == 0).all() and set(right["lengths"]) == {3}
    frame = runs()
    wrong = frame.assign(seconds=frame["seconds"] * (1 + 2 * (frame["k"] == 4)))
    picks = predictions.planned(predictions.predictions(wrong))
    assert picks["loss"].max() > 30 and "4" not in set(picks["fastest"])


def test_shares_and_curves_are_beside_plain_decoding():
    frame = runs()
    table = predictions.curves(frame)
    assert len(table) == 2 * 6 * 3
    plain = row("wide", 0, 0, 0.0).seconds
    assert np.allclose(table["speedup"], [plain / row(r.draft, r.k, 0, 0.0).seconds for r in table.itertuples()])
    assert predictions.paying(frame) == pytest.approx(100 * (table["speedup"] > 1).mean())
    assert predictions.paying(frame.assign(seconds=frame["seconds"] * (1 + 99 * (frame["k"] > 0)))) == 0


def test_the_optimum_is_the_planted_best_and_more_drafts_are_asked_for_where_they_are_too_few():
    found = designing.optima(runs())
    best = verdict_of(found, temperature=1.0)
    assert best.layers == 1 and best.nearest in ("wide", "large") and best.fitted == pytest.approx(best.measured, rel=0.05)
    dear = runs()
    dear = dear.assign(accepted=dear["accepted"] * np.where(dear["layers"] == 8, 1.0, 0.5))
    assert verdict_of(designing.optima(dear), temperature=1.0).layers > 1
    few = designing.optima(runs(drafts=("wide", "deep")))
    assert all("at least 4 drafts" in words for words in few["verdict"]) and few["layers"].isna().all()
    assert all("parts" in words for words in designing.optima(runs().assign(burst_seconds=np.nan))["verdict"])


def test_a_step_is_taken_apart_into_layers_and_bytes():
    found = designing.fit(pieces(paper=False))
    assert found.per_layer == pytest.approx(1.02 * PER_LAYER) and found.bandwidth == pytest.approx(1 / PER_BYTE / 1.02)
    assert math.isnan(designing.fit(pieces(paper=False).iloc[: 2 * TURNS]).per_layer)
    (gain,) = designing.depth_gains(pieces(paper=False)).to_dict("records")
    assert (gain["deep"], gain["shallow"]) == (24, 6)  # three layers hold other parameters
    assert gain["ratio"] == pytest.approx((24 * PER_LAYER + 1e-3) / (6 * PER_LAYER + 2e-3)) and gain["turns"] == TURNS


def test_the_papers_drafts_are_predicted_from_steps_and_stretched_checks():
    table = designing.at_papers_shapes(pieces()).set_index("draft")
    check, plain = (1.02 * (80 * PER_LAYER + 1e-4),) * 2
    step = 1.02 * (24 * PER_LAYER + 1e-3)
    assert table.loc[papers.YAN_DEEP.shape, "rate"] == pytest.approx(papers.YAN_DEEP.tar / (8 * step + check))
    assert table.loc[papers.YAN_DEEP.shape, "speedup"] == pytest.approx(papers.YAN_DEEP.tar * plain / (8 * step + check))
    assert designing.at_papers_shapes(pieces(paper=False)).empty
    ratio = papers.YAN_DEEP.step_ms / papers.YAN_WIDE.step_ms
    assert designing.gain_at(1.0) == pytest.approx(papers.YAN_WIDE.tar / papers.YAN_DEEP.tar * ratio)
    assert designing.gain_at(0.0) < 1


def test_the_papers_parts_give_their_printed_numbers():
    table = papers.computed()
    assert table[table["work"] == "decoding"]["off"].abs().max() < 0.5
    assert 1 < table[table["work"] == "thesis"]["off"].abs().max() < 2
    assert set(compare.CONTEXT).isdisjoint(table.columns)

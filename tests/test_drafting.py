"""What was planted in made-up races of drafts is what the readings find: order, correlation, predictions, shapes, costs."""

import math

import numpy as np
import pytest

pytest.importorskip("pandas")

from tables import line as verdict_of
from tables_drafts import ALPHA, LAYERS, PER_BYTE, PER_LAYER, READ, STEP, TURNS, family, pieces, row, runs

from flashspec.study import designing, drafting, papers, predictions
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
    assert len(table) == 2 * 2 * 6 * 3 and np.allclose(table["predicted"], table["seconds"]) and (table["prompts"] == 3).all()
    slow = predictions.errors(predictions.predictions(frame.assign(seconds=1.25 * frame["seconds"])))
    assert np.allclose(slow["median"], 20) and np.allclose(slow["bias"], -20)


def test_a_prediction_takes_its_counts_from_the_other_half():
    frame = runs(spread=0.0)
    lucky = frame["prompt"] % 2 == 1
    doubled = frame.assign(**{name: frame[name] * (1 + lucky) for name in ("rounds", "drafted", "actions_1")})
    plain, moved = predictions.predictions(frame), predictions.predictions(doubled)
    ratio = moved["predicted"] / plain["predicted"]
    assert ratio.max() > 1.5 and ((ratio > 1.1) == (plain["half"] == 1)).all()  # the lucky prompts are the half of 0


def test_settings_on_one_prompt_and_runs_without_parts_are_left_out():
    assert predictions.predictions(runs(prompts=1)).empty
    assert predictions.predictions(runs().assign(burst_seconds=np.nan)).empty
    assert predictions.errors(predictions.predictions(runs(prompts=1)))["median"].isna().all()


def test_the_pick_is_the_fastest_where_the_model_is_right_and_loses_where_it_is_not():
    right = predictions.losses(predictions.predictions(runs()))
    assert len(right) == 2 * 6 and (right == 0).all()
    frame = runs()
    wrong = frame.assign(seconds=frame["seconds"] * (1 + 2 * (frame["k"] == 4)))
    assert predictions.losses(predictions.predictions(wrong)).max() > 30


def test_the_share_that_pays_is_beside_plain_decoding():
    frame = runs()
    plain = row("wide", 0, 0, 0.0).seconds
    paying = [row(draft, k, 0, 0.0).seconds < plain for draft in LAYERS for k in (1, 2, 4)]
    assert predictions.paying(frame) == pytest.approx(100 * np.mean(paying))
    assert predictions.paying(frame.assign(seconds=frame["seconds"] * (1 + 99 * (frame["k"] > 0)))) == 0


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


def test_the_papers_parts_give_their_printed_numbers():
    table = papers.computed()
    assert 0 < table["off"].abs().max() < 0.5 and papers.implied_round()[0] == 8

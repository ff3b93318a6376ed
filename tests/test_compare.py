"""Comparisons pair by prompt and turn; what was planted in races of drafts is what the readings find."""

import math

import numpy as np
import pandas
import pytest
import tables
from tables import ALPHA, LAYERS, PER_BYTE, PER_LAYER, READ, SPEED, STEP, TURNS, drafted, family, line, race, runs, steps

from flashspec.study import chain, compare, drafting, stages
from flashspec.theory import tokens_per_check


def test_speedups_are_those_planted_and_a_slower_method_is_shown_as_slower():
    found = compare.speedups(race())
    for (method, head), factor in SPEED.items():
        if method != "baseline":
            one = line(found, method=method, head=head, temperature=0.0)
            assert one.low <= factor * 1.1 <= one.high and one.k == 2 and one.prompts == 16 and one.same_text == 1.0
    slow = line(found, method="lookup", temperature=1.0)
    assert slow.high < 1 and slow.verdict.startswith("0.8") and "baseline" not in set(found["method"])
    equal = compare.speedups(race(speed={("baseline", "dense"): 1.0, ("lookup", "dense"): 1.0}, ks=(1,)))
    assert all(words.startswith("no difference shown") for words in equal["verdict"])


def test_like_is_compared_with_like():
    found = compare.like_for_like(race())
    assert set(found["head"]) == {"flash"} and set(found["format"]) == {"bfloat16"}
    assert np.allclose(found["ratio"], 1.65 / 1.5, rtol=0.03)
    over_any = compare.gain(race(), {"head": "int8"}, [*compare.CONTEXT, "draft", "method"], ["head"])
    assert line(over_any, head="flash", temperature=0.0).ratio < 1


def test_an_unpaired_row_changes_nothing():
    frame = race(prompts=4)
    planted = frame[frame["head"] == "flash"].iloc[:1].assign(prompt=99, seconds=1e6)
    hiccup = pandas.concat([frame, planted, planted.assign(prompt=0, turn=7)], ignore_index=True)
    columns = ["ratio", "low", "high", "prompts"]
    by = ["k", "head", "method"]
    plain, with_planted = (compare.gain(f, {"method": "baseline"}, compare.CONTEXT, by) for f in (frame, hiccup))
    assert (plain[columns] == with_planted[columns]).all(axis=None)
    paired = frame["head"].eq("flash") & frame["prompt"].eq(0)
    moved = compare.gain(frame.assign(seconds=frame["seconds"] * (1 + 9 * paired)), {"method": "baseline"}, compare.CONTEXT, by)
    assert (plain["ratio"] != moved["ratio"]).any()


def test_few_prompts_are_called_few_and_another_text_is_counted():
    found = {prompts: compare.speedups(race(prompts=prompts))["verdict"] for prompts in (2, 8, 16)}
    assert set(found[2]) == {"too few prompts"} and all(words.endswith("few prompts") for words in found[8])
    assert not any("few" in words for words in found[16])
    frame = race()
    frame.loc[(frame["head"] == "flash") & (frame["prompt"] < 4), "text_digest"] = "y"
    assert line(compare.speedups(frame), head="flash", temperature=0.0).same_text == 0.75


def test_parts_and_counts_predict_the_seconds_of_a_run():
    parts = {"burst_seconds": 0.002, "check_1_seconds": 0.004, "prefill_seconds": 0.01, "overhead_seconds": 0.001,
             "finalize_seconds": 0.003, "step_seconds": 0.005}  # fmt: skip
    plain, two = (race().assign(**parts)[lambda rows, k=k: rows["k"] == k] for k in (0, 2))
    assert np.allclose(stages.predicted_seconds(plain), 0.01 + 64 * 0.006)
    assert np.allclose(stages.predicted_seconds(two), 0.01 + 32 * 0.002 + 32 * (0.004 + 0.001))
    assert np.allclose(stages.predicted_seconds(two.assign(finalize="eager")) - stages.predicted_seconds(two), 32 * 0.003)
    told = [stages.stages(rows)["predicted"] for rows in (two.assign(seconds=2 * stages.predicted_seconds(two)), race(prompts=4))]
    assert np.allclose(told[0], 0.5) and told[1].isna().all()


def test_no_ratio_is_given_where_float32_twins_differ():
    frame = race(prompts=4, turns=1).assign(twin_digest="one")
    spoilt = frame["head"].eq("flash") & frame["prompt"].eq(2) & frame["temperature"].eq(0.0)
    told = compare.speedups(frame.assign(twin_digest=frame["twin_digest"].mask(spoilt, "another")))
    wrong = told["verdict"].str.startswith("refused")
    assert list(wrong) == list((told["head"] == "flash") & (told["temperature"] == 0.0)) and wrong.any()
    assert told["ratio"].isna().equals(wrong)
    free = frame.assign(rule="speculative", temperature=1.0, turn=frame["turn"] + 10 * (frame["temperature"] == 0))
    assert not compare.speedups(free.assign(twin_digest=frame["twin_digest"].mask(spoilt, "another")))["ratio"].isna().any()


def test_the_planted_order_of_drafts_is_found():
    frame = runs()
    seconds = {d: min(drafted(d, k, 0, 0.0).seconds for k in (1, 2, 4)) for d in LAYERS}
    table = drafting.beside_plain(frame)
    greedy = table[table["temperature"] == 0.0]
    assert list(greedy["draft"]) == sorted(LAYERS, key=seconds.__getitem__)
    assert np.allclose(greedy["ratio"], (READ + 100 * STEP) / greedy["draft"].map(seconds))
    assert np.allclose(greedy["tar"], [tokens_per_check(ALPHA[d], 4) for d in greedy["draft"]])
    over = drafting.against(frame, "wide")
    assert set(over["over"]) == set(LAYERS) - {"wide"} and len(over) == 2 * 5
    assert line(over, over="deeper", temperature=1.0).ratio == pytest.approx(seconds["deeper"] / seconds["wide"])
    assert drafting.deepest(frame, "wide") == "deeper" and drafting.deepest(frame, "deeplarge") == ""
    assert drafting.deepest(frame, "nowhere") == ""


def test_what_acceptance_a_draft_has_and_would_need():
    frame = runs()
    table = drafting.required(frame).set_index(["draft", "temperature"])
    assert table["alpha"].to_dict() == pytest.approx({(d, t): ALPHA[d] for d in ALPHA for t in (0.0, 1.0)}, abs=0.02)
    fastest = table["speedup"].idxmax()
    assert table.loc[fastest, "best"] == pytest.approx(table.loc[fastest, "alpha"], abs=1e-6)
    assert (table["alpha"] > table["even"]).eq(table["speedup"] > 1).all()
    slow = drafting.required(frame.assign(seconds=frame["seconds"].where(frame["draft"] != "deep", 50.0))).set_index("draft")
    assert slow.loc["deep", ["even", "best"]].isna().all(axis=None)  # the control: no acceptance is enough


def test_flashhead_pays_what_the_head_takes():
    frame = tables.factorial().frame
    table = chain.by_share(frame)
    assert set(table["method"]) == {"draft_model", "self_speculation", "hispec"}
    assert np.allclose(table["ratio"], tables.HEAD["flash"])
    deferred, eager = (table[table["finalize"] == name]["share"].mean() for name in ("deferred", "eager"))
    assert deferred == pytest.approx(eager * tables.TOKEN["deferred"])
    assert eager == pytest.approx(100 * 80 * 5e-4 / 1.105, rel=0.01)
    dear = chain.by_share(frame.assign(head_seconds=2 * frame["head_seconds"]))
    assert np.allclose(dear["share"], 2 * table["share"])  # the control


def test_a_draft_that_ran_under_two_names_counts_once(monkeypatch):
    monkeypatch.setattr(drafting, "TWINS", ("middle", "deep"))
    assert "deep" not in set(drafting.pace(runs())["draft"]) and drafting.designed(runs()) == "deep"
    one, other = (runs(drafts=("wide", name)) for name in drafting.TWINS)
    assert drafting.designed(one) == "middle" and "deep" in set(drafting.pace(other)["draft"])


def test_correlations_have_the_planted_signs():
    found = drafting.correlations(drafting.qualities(runs(), family()))
    at = {"temperature": 1.0, "outcome": "tar"}
    assert line(found, quality="perplexity", **at).value == 1.0 and line(found, quality="layers", **at).value < 0
    assert math.isnan(line(found, quality="chosen", **at).value)
    other = drafting.correlations(drafting.qualities(runs(), family(-1.0)))
    assert line(other, quality="perplexity", **at).value == -1.0
    few = drafting.correlations(drafting.qualities(runs(drafts=("wide", "deep")), family()))
    assert set(few["verdict"]) == {"too few drafts that differ"}


def test_runs_that_take_what_the_model_says_are_predicted():
    frame = runs()
    table = stages.predictions(frame)
    assert len(table) == 2 * 2 * 6 * 3 and np.allclose(table["predicted"], table["seconds"]) and (table["prompts"] == 3).all()
    slow = stages.errors(stages.predictions(frame.assign(seconds=1.25 * frame["seconds"])))
    assert np.allclose(slow["median"], 20) and np.allclose(slow["bias"], -20)
    plain = frame["method"] == "baseline"
    lamed = stages.errors(stages.predictions(frame.assign(seconds=frame["seconds"] * (1 + 0.25 * plain))))
    assert np.allclose(slow["own_median"], 20) and np.allclose(slow["gain_most"], 0)
    assert np.allclose(lamed["gain_median"], 20) and np.allclose(lamed["median"], 0)


def test_a_prediction_takes_its_counts_from_the_other_half():
    frame = runs(spread=0.0)
    lucky = frame["prompt"] % 2 == 1
    doubled = frame.assign(**{name: frame[name] * (1 + lucky) for name in ("rounds", "drafted", "actions_1")})
    plain, moved = stages.predictions(frame), stages.predictions(doubled)
    ratio = moved["predicted"] / plain["predicted"]
    assert ratio.max() > 1.5 and ((ratio > 1.1) == (plain["half"] == 1)).all()  # the lucky prompts are the half of 0
    assert stages.predictions(runs(prompts=1)).empty
    assert stages.predictions(runs().assign(burst_seconds=np.nan)).empty
    assert stages.errors(stages.predictions(runs(prompts=1)))["median"].isna().all()


def test_the_pick_is_the_fastest_where_the_model_is_right():
    frame = runs()
    wrong = frame.assign(seconds=frame["seconds"] * (1 + 2 * (frame["k"] == 4)))
    assert stages.picks(stages.predictions(frame)).to_dict("records") == [{"settings": 12, "near": 100, "mean": 0, "worst": 0}]
    (lost,) = stages.picks(stages.predictions(wrong)).to_dict("records")
    assert lost["near"] < 100 and lost["worst"] > 30
    assert stages.picks(stages.predictions(frame[frame["k"] < 2])).empty
    frame = runs()
    plain = drafted("wide", 0, 0, 0.0).seconds
    paying = [drafted(draft, k, 0, 0.0).seconds < plain for draft in LAYERS for k in (1, 2, 4)]
    assert stages.paying(frame) == pytest.approx(100 * np.mean(paying))
    assert stages.paying(frame.assign(seconds=frame["seconds"] * (1 + 99 * (frame["k"] > 0)))) == 0


def test_a_step_is_taken_apart_into_layers_and_bytes():
    found = drafting.fit(steps())
    assert found["per_layer"] == pytest.approx(1.02 * PER_LAYER) and found["bandwidth"] == pytest.approx(1 / PER_BYTE / 1.02)
    assert math.isnan(drafting.fit(steps().iloc[: 2 * TURNS])["per_layer"])
    (gain,) = drafting.depth_gains(steps()).to_dict("records")
    assert (gain["deep"], gain["shallow"]) == (24, 6)  # three layers hold other parameters
    assert gain["ratio"] == pytest.approx((24 * PER_LAYER + 1e-3) / (6 * PER_LAYER + 2e-3)) and gain["turns"] == TURNS

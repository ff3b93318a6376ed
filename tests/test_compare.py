"""Comparisons pair by prompt and turn, tell like from unlike, and give a frame for any slice of a table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import SPEED, line, race

from flashspec.study import compare

pandas = pytest.importorskip("pandas")

def test_speedups_are_those_planted_and_a_slower_method_is_shown_as_slower():
    found = compare.speedups(race())
    for (method, head), factor in SPEED.items():
        if method != "baseline":
            one = line(found, method=method, head=head, temperature=0.0)
            assert one.low <= factor * 1.1 <= one.high and one.k == 2 and one.prompts == 16 and one.same_text == 1.0
    slow = line(found, method="lookup", temperature=1.0)
    assert slow.high < 1 and slow.verdict.startswith("0.8") and "baseline" not in set(found["method"])


def test_equal_methods_show_no_difference():
    found = compare.speedups(race(speed={("baseline", "dense"): 1.0, ("lookup", "dense"): 1.0}, ks=(1,)))
    assert all(words.startswith("no difference shown") for words in found["verdict"])


def test_like_is_compared_with_like():
    found = compare.like_for_like(race())
    assert set(found["head"]) == {"flash"} and set(found["format"]) == {"bfloat16"}
    assert np.allclose(found["ratio"], 1.65 / 1.5, rtol=0.03)
    over_any = compare.gain(race(), {"head": "int8"}, [*compare.CONTEXT, "draft", "method"], ["head"])
    assert line(over_any, head="flash", temperature=0.0).ratio < 1


def test_engines_and_formats_are_sides_too():
    ours = race(temperatures=(0.0,))
    frame = pandas.concat([ours, ours.assign(engine="other", seconds=ours["seconds"] * 2)], ignore_index=True)
    found = compare.gain(frame, {"engine": "other"}, ["temperature", "method", "head"], ["engine"])
    assert np.allclose(found["ratio"], 2) and set(found["method"]) == {"baseline", "draft_model", "lookup"}
    int4 = pandas.concat([ours, ours.assign(weights="int4", seconds=ours["seconds"] / 3)], ignore_index=True)
    assert np.allclose(compare.gain(int4, {"weights": "dense"}, ["method", "head"], ["weights"])["ratio"], 3)
    beside = compare.speedups(frame)
    assert list(beside[beside["engine"] == "other"]["ratio"]) == pytest.approx(list(compare.speedups(ours)["ratio"]))


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


def test_few_prompts_are_called_few():
    assert set(compare.speedups(race(prompts=2))["verdict"]) == {"too few prompts"}
    assert all(words.endswith("few prompts") for words in compare.speedups(race(prompts=8))["verdict"])
    assert not any("few" in words for words in compare.speedups(race(prompts=16))["verdict"])


def test_another_text_is_counted():
    frame = race()
    frame.loc[(frame["head"] == "flash") & (frame["prompt"] < 4), "text_digest"] = "y"
    assert line(compare.speedups(frame), head="flash", temperature=0.0).same_text == 0.75


def test_rates_stand_beside_plain_decoding():
    rows = compare.rated(race(noise=0.0))
    assert np.allclose(rows.loc[rows["head"].eq("flash") & rows["k"].eq(1), "speedup"], 1.65)
    assert np.allclose(rows.loc[rows["method"].eq("baseline"), "speedup"], 1.0)
    assert compare.rated(race()[lambda f: f["method"] != "baseline"])["speedup"].isna().all()


def test_predicted_seconds_are_parts_times_counts():
    parts = {"burst_seconds": 0.002, "check_1_seconds": 0.004, "prefill_seconds": 0.01, "overhead_seconds": 0.001,
             "finalize_seconds": 0.003, "step_seconds": 0.005}  # fmt: skip
    frame = race().assign(**parts)
    deferred = compare.rated(frame)
    two = deferred[deferred["k"] == 2]
    assert np.allclose(two["predicted_seconds"], 0.01 + 32 * 0.002 + 32 * (0.004 + 0.001))
    plain = deferred[deferred["method"] == "baseline"]
    assert np.allclose(plain["predicted_seconds"], 0.01 + 64 * 0.006)
    eager = compare.rated(frame.assign(finalize="eager"))
    assert np.allclose(eager.loc[eager["k"] == 2, "predicted_seconds"] - two["predicted_seconds"], 32 * 0.003)


def test_rank_correlation_and_its_interval():
    x = np.arange(20.0)
    same, other = compare.spearman(x, x**3), compare.spearman(x, np.random.default_rng(1).permutation(x))
    assert same.value == same.low == same.high == 1.0 and other.low < 0 < other.high
    assert np.isnan(compare.spearman([1.0, 2.0], [1.0, 2.0]).value)


FRAME = race(prompts=4, noise=0.1)
SLICED = ("method", "head", "temperature", "k", "prompt", "turn")
SLICES = {name: st.sets(st.sampled_from(sorted(set(FRAME[name])))) for name in SLICED}


@given(st.fixed_dictionaries(SLICES))
def test_any_slice_gives_frames(kept):
    frame = FRAME[np.logical_and.reduce([FRAME[name].isin(values) for name, values in kept.items()])]
    for found in (compare.speedups(frame), compare.like_for_like(frame), compare.rated(frame), compare.best(frame)):
        assert isinstance(found, pandas.DataFrame)
    pairs = {(r.temperature, r.prompt, r.turn) for r in frame[frame["method"] == "baseline"].itertuples()}
    speculated = frame[frame["method"] != "baseline"]
    beside = [(r.temperature, r.prompt, r.turn) in pairs for r in speculated.itertuples()]
    assert compare.speedups(frame).empty <= (not any(beside))


def test_no_ratio_is_given_where_float32_twins_differ():
    frame = race(prompts=4, turns=1).assign(twin_digest="one")
    spoilt = frame["head"].eq("flash") & frame["prompt"].eq(2) & frame["temperature"].eq(0.0)
    told = compare.speedups(frame.assign(twin_digest=frame["twin_digest"].mask(spoilt, "another")))
    wrong = told["verdict"].str.startswith("refused")
    assert list(wrong) == list((told["head"] == "flash") & (told["temperature"] == 0.0)) and wrong.any()
    assert told["ratio"].isna().equals(wrong)
    free = frame.assign(rule="speculative", temperature=1.0, turn=frame["turn"] + 10 * (frame["temperature"] == 0))
    assert not compare.speedups(free.assign(twin_digest=frame["twin_digest"].mask(spoilt, "another")))["ratio"].isna().any()

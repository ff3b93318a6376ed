"""Readings of the draft study give what was put into the tables: winners, predictions, correlations, costs and the optimum."""

from __future__ import annotations

import random

import pytest
import tables_drafts as made

pytest.importorskip("pandas")

from flashspec.study import figures, foretold, latency, merits, papers, planned, winners
from flashspec.study.ranks import correlation_words, rank_correlation, spearman
from flashspec.study.readings import Missing, where
from flashspec.theory import tokens_per_check


def test_the_winner_is_the_shallowest_of_equal_acceptance() -> None:
    frame = made.runs().frame
    assert winners.winner(frame, 1.0) == "wide"
    assert winners.matched_deepest(frame, "wide") == "deeper"
    k = int(winners.best(frame, 1.0).loc["deeper", "k"])
    expected = made.milliseconds("deeper", k, made.ALPHA["deeper"]) / made.milliseconds("wide", 4, made.ALPHA["wide"])
    assert winners.gain(frame, "wide", "deeper", 1.0).value == pytest.approx(expected)
    assert winners.depth_verdict(frame, 1.0).startswith("wide over deeper: ")


def test_a_larger_draft_is_not_matched() -> None:
    with pytest.raises(Missing, match="as large as large and deeper"):
        winners.matched_deepest(made.runs().frame, "large")
    assert "no draft as large as large" in winners.depth_verdict(made.runs().frame.query("draft == 'large' or k == 0"), 1.0)


def test_the_designed_draft_is_the_one_of_that_name() -> None:
    frame = made.runs().frame
    assert winners.designed(frame, 1.0) == "wide"
    assert winners.designed(frame.replace({"draft": {"deep": "designed"}}), 1.0) == "designed"


def named(**names: str):
    """The runs with drafts renamed."""
    return made.runs().frame.replace({"draft": names})


def test_no_line_of_the_sweep_is_left_out() -> None:
    """More drafts and heads than there are colours."""
    import pandas

    pytest.importorskip("matplotlib")
    found = made.swept()
    runs = found.frame[found.frame["k"] > 0]
    found.frame = pandas.concat([found.frame, *(runs.assign(method=head) for head in ("int8", "flash"))], ignore_index=True)
    for axis in figures.sweep(found).figure.axes:
        labelled = [line for line in axis.lines if not line.get_label().startswith("_")]
        looks = {(line.get_color(), line.get_linestyle()) for line in labelled}
        assert len(labelled) == len(looks) == 3 * len(made.LAYERS)


def test_the_designed_draft_is_held_against_its_family_alone() -> None:
    """Drafts that are no points of the family do not count; where the designed one is slower, the sentence says who is faster."""
    frame = named(wide="shallow", middle="designed", deep="wide-4", deeper="deep-8")
    assert winners.designed(frame, 1.0) == "designed" and winners.winner(frame, 1.0) == "shallow"
    assert set(winners.of_family(frame)["draft"]) - {"shallow"} == {"designed", "wide-4", "deep-8"}
    assert winners.family_verdict(frame, 1.0).startswith("designed is the fastest of 3, as asked for; over wide-4, the next: 1.3")
    assert "meets the 1.2× asked for" in winners.depth_verdict(frame, 1.0)
    slow = named(deeper="designed", deep="wide-4", middle="deep-8")
    assert winners.family_verdict(slow, 1.0).startswith(
        "designed is not the fastest of 3, as was asked for; deep-8 over designed"
    )
    close = frame.assign(seconds=frame["seconds"] * (1 + 0.8 * (frame["draft"] == "designed")))
    assert "misses the 1.2× asked for" in winners.depth_verdict(close, 1.0)


def test_the_designed_drafts_own_point_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winners, "point_of_designed", lambda: "wide-1")
    both = named(wide="wide-1", middle="designed", deep="wide-4")
    assert set(winners.of_family(both)["draft"]) - {"wide-1"} == {"designed", "wide-4"}  # plain decoding ran beside wide-1
    assert "wide-1" not in set(winners.alike(both)["draft"])
    assert winners.designed(named(middle="wide-1"), 1.0) == "wide-1"
    assert winners.designed(named(middle="wide-4", deep="deep-8"), 1.0) == "wide-4"  # not the faster one outside the family


def test_the_worst_setting_is_named() -> None:
    frame = made.swept().frame
    slow = frame.assign(seconds=frame["seconds"] * (1 + 9 * ((frame["draft"] == "deep") & (frame["k"] == 2))))
    assert winners.slowest_words(slow).startswith("deep with the dense head at k = 2, T = ")


def test_texts_that_part_are_counted() -> None:
    frame = made.runs().frame
    assert winners.same_text(frame) == 100
    frame.loc[frame["draft"] == "deep", "text_digest"] = "another"
    assert winners.same_text(frame) == pytest.approx(80)


def test_runs_that_pay_are_counted_by_their_own_baseline() -> None:
    frame = made.swept().frame.query("draft == 'wide'")
    assert winners.paying_share(frame) == 100
    slow = frame.assign(seconds=frame["seconds"] * (1 + 9 * (frame["k"] == 2)))
    assert winners.paying_share(slow) == 50
    assert winners.by_kind_words(frame, "wide", 1.0).startswith("code ")


def test_a_draft_is_compared_with_plain_decoding_beside_it() -> None:
    frame = made.swept().frame
    shared = winners.over_plain(made.runs().frame, "deep", 1.0).value
    assert winners.over_plain(frame, "deep", 1.0).value == pytest.approx(shared)
    busy = frame.assign(seconds=frame["seconds"] * (1 + (frame["draft"] == "wide")))
    assert winners.over_plain(busy, "deep", 1.0).value == pytest.approx(shared)
    assert winners.best(busy, 1.0).loc["wide", "speedup"] == pytest.approx(winners.best(frame, 1.0).loc["wide", "speedup"])


def test_predictions_meet_runs_that_the_model_made(tmp_path) -> None:
    found = made.runs(tmp_path)
    table = foretold.predictions(found.frame, foretold.parts_of(found), made.counts().frame)
    assert len(table) == int((found.frame["k"] > 0).sum())
    assert foretold.errors(table[table["repeat"] == 0]).abs().max() < 1e-9
    assert foretold.error_at(table, 1.0) == pytest.approx(100 * (1 - 1 / 1.03))
    assert foretold.within(table, 1.5) == 50 and foretold.within(table, 10) == 100
    assert foretold.smallest_run(foretold.over_kinds(table)) == (200, 2)
    assert winners.winner_by_model(table, 1.0) == "wide"


def test_a_slower_check_is_seen_as_an_error(tmp_path) -> None:
    """The control: predictions come from the parts, not from the runs."""
    found, parts = made.runs(tmp_path), made.parts().assign(table="between")
    wrong = parts.assign(seconds=parts["seconds"] * (1 + (parts["part"] == "check 4")))
    table = foretold.predictions(found.frame, wrong, made.counts().frame)
    assert foretold.errors(table[table["k"] == 4]).min() > 0.1 and foretold.errors(table[table["k"] == 2]).abs().max() < 0.04
    twice = found.frame.assign(seconds=2 * found.frame["seconds"])
    assert list(foretold.predictions(twice, wrong, made.counts().frame)["predicted"]) == list(table["predicted"])


def test_what_a_plan_recommends_is_the_fastest_of_runs_that_the_model_made(tmp_path) -> None:
    """On runs that the model made nothing is lost; with a check that takes longer than in the runs, something is."""
    found, counts = made.runs(tmp_path), made.three_kinds().frame
    parts = foretold.parts_of(found, temperature=1.0)
    plans = planned.planned(found.frame, parts, counts, 1.0)
    assert {one.draft for one in plans} == set(made.LAYERS) and max(one.loss for one in plans) == 0
    assert all(one.recommended == one.fastest for one in plans)
    long = {one.draft for one in plans if one.fastest == 4}
    assert long and "within 3 % for 5 of 5 drafts; the largest loss is 0 %, meets" in planned.planned_words(plans)
    wrong = parts.assign(seconds=parts["seconds"] * (1 + 9 * (parts["part"] == "check 4")))
    worse = planned.planned(found.frame, wrong, counts, 1.0)
    assert {one.draft for one in worse if one.loss > 0} == long and "misses the 3 %" in planned.planned_words(worse)
    with pytest.raises(Missing, match="replayed"):
        planned.planned(found.frame, parts, counts.assign(k=5), 1.0)


def test_races_at_different_times_are_held_each_against_its_own_runs(tmp_path) -> None:
    first, second, counts = made.runs(tmp_path / "first"), made.runs(tmp_path / "second"), made.three_kinds().frame
    second.frame = second.frame.assign(seconds=2 * second.frame["seconds"])
    plans = planned.planned_in([first, second], counts, 1.0)
    assert len(plans) == 2 * len(made.LAYERS) and max(one.loss for one in plans) == 0
    mixed = made.pandas.concat([first.frame, where(second.frame, k=4)], ignore_index=True)
    parts = foretold.parts_of(first, temperature=1.0)
    assert max(one.loss for one in planned.planned(mixed, parts, counts, 1.0)) > 0  # the control: one pool of runs


def test_pooled_runs_are_predicted_from_all_kinds(tmp_path) -> None:
    found = made.runs(tmp_path)
    table = foretold.predictions(found.frame.assign(kind="all"), foretold.parts_of(found), made.counts().frame)
    assert foretold.errors(table[table["repeat"] == 0]).abs().max() < 1e-9


def test_lost_parts_and_unknown_drafts_are_named(tmp_path) -> None:
    found = made.runs(tmp_path)
    (tmp_path / "draft_parts" / "between.csv").unlink()
    with pytest.raises(Missing, match="draft_parts/between"):
        foretold.parts_of(found)
    with pytest.raises(Missing, match="replayed"):
        foretold.predictions(found.frame, made.parts().assign(table="between"), made.counts().frame.assign(digest="other"))
    with pytest.raises(Missing, match="nothing on wide"):
        foretold.predictions(found.frame, made.parts().assign(table="elsewhere"), made.counts().frame)


def test_settings_of_the_first_study_are_not_unseen() -> None:
    frame = made.runs().frame.query("k > 0").assign(k=lambda rows: rows["k"].replace(4, 3))  # the study's own k
    assert foretold.unseen_share(frame) == 0
    assert foretold.unseen_share(frame.assign(k=frame["k"].replace(3, 8))) == 50
    assert foretold.unseen_share(frame.assign(temperature=0.7)) == 100


def test_spearman_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    dice = random.Random(0)
    for _ in range(20):
        x, y = ([dice.randrange(6) for _ in range(12)] for _ in range(2))
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman([1, 2, 3], [10, 100, 1000]) == 1 and spearman([1, 2, 3], [3, 2, 1]) == -1
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    with pytest.raises(ValueError, match="pairs"):
        spearman([1], [1, 2])


def test_an_interval_holds_zero_where_there_is_nothing() -> None:
    rising = list(range(12))
    assert rank_correlation(rising, rising).low > 0.9
    assert "no correlation shown" in correlation_words(rising, [3, 9, 1, 7, 11, 0, 5, 10, 2, 8, 4, 6])
    assert "no rank correlation from 2 drafts" in correlation_words([1, 2], [2, 1])


def test_merits_go_with_tar_as_they_were_made() -> None:
    frame = made.quality().frame
    table = merits.merits(frame, 1.0)
    assert table.loc["large", "tar"] == pytest.approx(2 * 64 / (2 * (20 - 8.5)))
    assert merits.with_tar(frame, "perplexity", 1.0).startswith("+1.00")
    assert merits.with_tar(frame, "chosen", 1.0).startswith("+0.00")
    assert merits.with_rate(frame, made.runs().frame, "layers", 1.0).startswith("+")


def test_no_draft_counts_twice_among_the_merits(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = made.quality().frame.replace({"draft": {"deep": "designed", "deeper": "deep-8"}})
    assert "designed" in merits.merits(frame, 1.0).index
    monkeypatch.setattr(merits, "point_of_designed", lambda: "deep-8")
    assert set(merits.merits(frame, 1.0).index) == {"wide", "middle", "large", "deep-8"}


def test_a_target_away_from_home_costs_what_was_put_in() -> None:
    frame = made.away().frame
    assert merits.targets(frame) == ["reference", "fine-tuned"]
    kept = merits.kept(frame, "wide", 1.0)
    assert kept["reference"]["speedup"] / kept["fine-tuned"]["speedup"] == pytest.approx(1.25)
    assert merits.same_winner(frame, 1.0) == "wide on reference, wide on fine-tuned"
    assert merits.away_words(frame, "wide", 1.0).count("TAR") == 2
    assert merits.loss_words(frame, "wide", 1.0) == "a gain is shown on all 2 targets"
    slow = frame.assign(seconds=frame["seconds"] * (1 + 3 * ((frame["target"] == "fine-tuned") & (frame["k"] > 0))))
    assert merits.loss_words(slow, "wide", 1.0) == "no gain is shown on fine-tuned"


def test_layers_and_bytes_are_told_apart() -> None:
    frame = made.latency().frame
    fit = latency.fit(frame)
    assert fit.per_layer == pytest.approx(made.PER_LAYER) and fit.bandwidth == pytest.approx(1 / made.PER_BYTE)
    assert latency.depth_gain(frame, "OPT").value > 1
    with pytest.raises(Missing, match="at least 3 shapes"):
        latency.fit(frame[frame["layers"] == 12].query("group == 'OPT'"))


def test_what_sets_the_pace_is_the_ratio_that_is_one() -> None:
    """With layers alone milliseconds a layer agree, with bytes alone gigabytes a second do."""
    frame = made.latency().frame
    bound = {name: frame.assign(seconds=value) for name, value in
             {"layers": made.PER_LAYER * frame["timed"], "bytes": made.PER_BYTE * frame["bytes"]}.items()}  # fmt: skip
    assert latency.wide_over_deep(bound["layers"], "here, ms a layer") == pytest.approx(1)
    assert latency.wide_over_deep(bound["layers"], "here, GB/s") == pytest.approx(2)
    assert latency.wide_over_deep(bound["bytes"], "here, GB/s") == pytest.approx(1)
    assert latency.places(frame).loc[papers.YAN_DEEP.shape, "paper, ms a layer"] == pytest.approx(13.13 / 24)
    assert latency.turning_bytes(latency.fit(frame)) == pytest.approx(made.PER_LAYER / made.PER_BYTE)
    assert latency.layer_bytes(frame) == pytest.approx((20 / 24, 20 / 6))
    with pytest.raises(Missing, match="no step of Sheared"):
        latency.places(made.latency(paper=False).frame)


def test_a_target_is_stretched_to_its_depth() -> None:
    frame = made.latency().frame
    assert latency.check_seconds(frame, 9) == pytest.approx(80 * made.PER_LAYER + made.PER_BYTE * 1e6)


def test_the_papers_gain_follows_from_its_parts_and_from_ours() -> None:
    frame = made.latency().frame
    k, check = papers.implied_round()
    assert k == 8 and check == pytest.approx(60, rel=0.005)
    assert latency.gain_printed() == pytest.approx(papers.YAN_WIDE.rate / papers.YAN_DEEP.rate, rel=5e-3)
    assert latency.gain_at(latency.share_needed(1.6)) == pytest.approx(1.6)
    steps = [made.PER_LAYER * layers + made.PER_BYTE * 10**7 for layers in (24, 12)]
    whole = latency.check_seconds(frame, 9)
    assert latency.gain_here(frame) == pytest.approx(3.70 / 3.81 * (8 * steps[0] + whole) / (8 * steps[1] + whole))
    assert latency.draft_share(frame, papers.YAN_DEEP) == pytest.approx(8 * steps[0] / (8 * steps[0] + whole))
    plain = latency.check_seconds(frame, 1)
    assert latency.speedup_here(frame, papers.YAN_DEEP) == pytest.approx(3.81 * plain / (8 * steps[0] + whole))
    assert "does not reach" in latency.headline_words(frame)
    assert "which reaches" in latency.headline_words(frame.assign(seconds=frame["seconds"].where(frame["what"] == "step", 1e-3)))
    assert "no row" in latency.headline_words(made.latency(paper=False).frame)


def test_the_designed_draft_is_held_against_its_own_point(monkeypatch) -> None:
    frame = made.runs().frame
    assert winners.twin_words(frame, 1.0) == "the table has not both of them"
    monkeypatch.setattr(winners, "point_of_designed", lambda: "wide")
    both = frame.replace({"draft": {"middle": "designed"}})
    assert winners.twin_words(both, 1.0) == winners.words(winners.gain(both, "designed", "wide", 1.0))


def test_what_limits_the_gain_over_the_deepest_is_told_from_parts(tmp_path) -> None:
    found = made.runs(tmp_path)
    parts = foretold.parts_of(found)
    name = winners.designed(found.frame, 1.0)
    mine = winners.paced(found.frame, parts, name, 1.0)
    k = int(winners.best(found.frame, 1.0).loc[name, "k"])
    assert (mine.tar, mine.burst, mine.rest) == pytest.approx((tokens_per_check(0.8, k), k * made.draft_ms(name), made.CHECK_MS))
    other = winners.paced(found.frame, parts, winners.matched_deepest(found.frame, name), 1.0)
    gain = mine.tar / mine.rest * (other.burst + other.rest) / other.tar
    said = winners.depth_limit_words(found.frame, parts, 1.0)
    assert said.startswith(mine.words) and f"would be {gain:.2f}× as fast" in said
    slower = parts.assign(seconds=parts["seconds"] * (1 + parts["part"].str.startswith("check ")))
    assert winners.depth_limit_words(found.frame, slower, 1.0) != said
    alone = found.frame.query("draft == 'large' or k == 0")
    assert "no draft as large as large" in winners.depth_limit_words(alone, parts, 1.0)


def test_the_optimum_is_compared_with_what_was_built(tmp_path) -> None:
    found = made.runs(tmp_path)
    parts = foretold.parts_of(found)
    space = winners.space(found.frame, parts, made.counts().frame, 1.0)
    assert space.layers == list(range(1, 9)) and len(space.drafts) == len(made.LAYERS)
    assert winners.nearest(found.frame, space) in made.LAYERS
    said = winners.optimum_words(found.frame, parts, made.counts().frame, 1.0)
    assert "the family" in said
    assert winners.verdict(found.frame, ("wide", "wide"), 1.0).startswith("the family confirms")
    assert winners.verdict(found.frame, ("deeper", "wide"), 1.0).startswith("the family refutes")
    assert "at least 4 drafts" in winners.optimum_words(
        found.frame.query("draft == 'wide' or draft == 'deep'"), parts, made.counts().frame, 1.0
    )


def test_drafts_trained_otherwise_do_not_enter_the_relation() -> None:
    frame = made.runs().frame
    frame.loc[frame["draft"] == "large", "steps"] = 50
    assert set(winners.alike(frame)["draft"]) == set(made.LAYERS) - {"large"}


def test_papers_rows_meet_what_was_printed() -> None:
    frame = made.printed().frame
    off = (frame["computed"] / frame["published"] - 1).abs()
    assert off[frame["work"] == "decoding"].max() < 5e-3
    assert off[frame["work"] == "thesis"].max() > 5e-3


def test_the_thesis_asks_for_an_absurd_draft() -> None:
    fixed = papers.thesis_fixed_costs()
    assert fixed.tokens_ratio == pytest.approx(1.51, abs=0.01) and fixed.k_over_tokens == pytest.approx(27.7, abs=0.2)
    ms = fixed.closest
    assert ms["eager_dense"] - ms["eager_flash"] == pytest.approx(ms["deferred_dense"] - ms["deferred_flash"])

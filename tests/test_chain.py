"""Readings of the chapters say what was put into their tables, and figures name them."""

import numpy as np
import pandas
import pytest
from tables import HEAD, MACHINE, TOKEN, factorial, line, pieces, race, recall_rows, results, runs, steps

from flashspec.study import answers, chain, figures, recall, stages
from flashspec.study.frames import pivoted
from flashspec.study.quote import NOT_HERE, digits, shown, value, verdict
from flashspec.theory import BURSTS, WAITS, Level, amdahl, nested, scheduled

ONE = pieces(layers=(2,))


def test_the_chain_holds_what_was_put_in():
    found = chain.chain(race(noise=0.0), ONE)
    assert value(found, name="main", stage="projection") == pytest.approx(4.0)
    assert value(found, name="main", stage="draft step") == pytest.approx(amdahl(4 / 6, 4.0))
    assert set(found.loc[found["stage"] == "projection", "probes"]) == {64}  # a tenth of the rows
    texts = found[found["stage"] == "text, deferred"]
    assert len(texts) == 2 and texts["ratio"].to_numpy() == pytest.approx(1.65 / 1.5)  # over bfloat16, not over the faster int8
    assert chain.head_shares(ONE)["part"].tolist() == pytest.approx([4 / 6])
    slow = ONE.assign(seconds=ONE["seconds"].where(ONE["piece"] != "projection", 1.0))  # alone, a projection may take longer
    assert chain.head_shares(slow)["part"].tolist() == pytest.approx([4 / 6])
    assert chain.head_shares(ONE[ONE["piece"].isin(["projection", "step"])])["part"].tolist() == pytest.approx([4 / 6])
    assert np.isnan(value(chain.head_shares(ONE), "part", shape="opt")) and verdict(found, name="opt") == NOT_HERE


def test_a_question_is_answered_by_the_same_format_or_not_at_all():
    sides, frame = ({"head": "flash"}, {"head": "dense"}), race(noise=0.0)
    assert answers.ratio(frame, *sides)["ratio"].to_numpy() == pytest.approx(1.65 / 1.5)
    assert answers.ratio(frame[frame["head"] != "flash"], *sides).empty
    lines = answers.answers(answers.DECISIONS, {})
    assert set(lines["verdict"]) == set(lines["pays"]) == {NOT_HERE} and len(lines) == len(answers.DECISIONS)
    assert NOT_HERE in shown(lines, answers.SHOWN).data
    question = {"what": "FlashHead", "race": "many-1", "chapter": 5, "mine": sides[0], "over": sides[1]}
    told = answers.answers({"x": question}, {"many-1": results(frame)})
    assert verdict(told, name="x", temperature=0.0).startswith("1.10×") and verdict(told, "pays", name="x") == "pays"
    assert "<svg" in figures.answers(lines=told).svg


def test_deferral_compares_one_format_with_itself():
    deferred = race(prompts=4, noise=0.0)
    eager = deferred[deferred["method"] != "baseline"].assign(finalize="eager", seconds=lambda rows: 1.4 * rows["seconds"])
    eager.loc[eager["head"] == "int8", "seconds"] *= 0.5
    found = chain.deferral(pandas.concat([deferred, eager], ignore_index=True))
    assert value(found, head="dense") == pytest.approx(1.4) and value(found, head="int8") == pytest.approx(0.7)
    assert chain.deferral(deferred).empty


def test_checks_and_engines_are_held_against_their_like():
    found = chain.checks(ONE)
    assert value(found, rows=5) == pytest.approx(7 / 3) and value(found, rows=1) == 1.0
    assert line(pivoted(found, ["shape", "rows"], "format", "ratio"), rows=5)["bfloat16"] == pytest.approx(7 / 3)
    none = chain.checks(ONE[ONE["rows"] != 1])
    assert none["ratio"].isna().all()
    ours = race(temperatures=(0.0,), noise=0.0, speed={("baseline", "dense"): 1.0, ("draft_model", "dense"): 1.5})
    theirs = ours.assign(engine="transformers", seconds=lambda rows: 3 * rows["seconds"])
    found = chain.peers(pandas.concat([ours, theirs], ignore_index=True))
    assert list(found["mode"]) == ["each at its fastest", "plain", "with the draft"]
    assert found["ratio"].to_numpy() == pytest.approx(3.0)
    assert chain.peers(ours).empty
    own = ours["method"] == "draft_model"
    two = pandas.concat([ours, ours[own].assign(draft="slow", seconds=ours["seconds"] * 9), theirs], ignore_index=True)
    pandas.testing.assert_frame_equal(chain.peers(two), found)  # a draft that the other engine did not run changes nothing


def test_gains_are_those_planted_over_the_dense_head_of_the_format():
    frame = pieces()
    float32 = frame[frame["head"] == "dense"].assign(format="float32", seconds=lambda rows: 3 * rows["seconds"])
    found = chain.faster(pandas.concat([float32, frame], ignore_index=True))
    one = line(found, piece="head", layers=1, head="flash", probes=64)
    assert one["ratio"] == pytest.approx(4.0) and one["over"] == "bfloat16" and one["limit"] == pytest.approx(4.0)
    assert chain.faster(float32).empty and chain.faster(frame[frame["head"] != "dense"]).empty
    assert set(chain.faster(frame[frame["turn"] == 0])["verdict"]) == {"too few turns"}
    at = {"layers": 4, "head": "flash", "probes": 64}
    one = line(chain.depths(pieces()), **at)
    assert one["share"] == pytest.approx(50.0)
    assert one["ratio"] == pytest.approx(one["predicted"]) == pytest.approx(amdahl(0.5, 4.0))
    slow = pieces().assign(seconds=lambda rows: rows["seconds"] * (1 + ((rows["piece"] == "step") & (rows["head"] == "flash"))))
    other = line(chain.depths(slow), **at)
    assert other["ratio"] == pytest.approx(other["predicted"] / 2)
    frame = pandas.concat([ONE[ONE["piece"] == "head"].assign(shape=shape) for shape in ("512x64", "512x128", "1024x64")])
    found = chain.by_shape(chain.costs(frame))
    assert found["ids"].tolist() == [512, 1024] and found[64].tolist() == pytest.approx([4.0, 4.0])
    assert found[128].isna().tolist() == [False, True] and chain.by_shape(chain.costs(ONE[ONE["head"] != "flash"])).empty


def test_agreement_is_told_by_kind_and_calibration_halves_what_is_missed():
    table = chain.by_kind(recall_rows())
    plain, ready = line(table, name="flash"), line(table, name="flash, calibrated")
    assert (plain["code"], plain["prose"], plain["agreement"]) == (96.0, 99.0, 97.5) and ready["agreement"] == 98.75
    assert plain["share"] == 10.0 and plain["coverage"] == 90.0
    assert digits(value(table, "agreement", name="flash") / 100, ".1%") == "97.5%"
    assert digits(value(table, "agreement", name="x")) == NOT_HERE
    timed = recall.Row("", "", "flash", "bfloat16", 1000, 64, 100, 12800, "spherical", 1, 16, clustering_seconds=30.0,
                       balancing_seconds=20.0, permutation_seconds=10.0)  # fmt: skip
    found = chain.builds(pandas.DataFrame([vars(timed)]))
    assert found["minutes"].tolist() == [1.0] and chain.builds(recall_rows()).empty


FACTORIAL = factorial().frame


def test_the_time_of_a_token_is_that_of_its_pieces():
    late = FACTORIAL[FACTORIAL["finalize"] == "deferred"]
    found = stages.stages(late[late["head"] == "dense"])
    deep = line(found, method="hispec", temperature=0.0)
    spent = {"prompt": 0.04, "drafting": 0.8, "middle checks": 0.8, "full checks": 1.6}
    assert {part: deep[part] for part in stages.PARTS if deep[part]} == pytest.approx(spent)
    assert line(found, method="baseline", temperature=1.0)["plain steps"] == pytest.approx(10.0)
    alone = line(found, method="self_speculation", temperature=0.0)
    assert (alone["middle checks"], alone["full checks"]) == pytest.approx((0.0, 0.8))
    assert (deep["accepts_1"], deep["accepts_2"], deep["check_ratio"]) == pytest.approx((0.8, 0.8, 0.25))
    assert deep["speedup"] == pytest.approx(1.2) and np.isnan(alone["accepts_2"])
    eager = stages.stages(FACTORIAL[(FACTORIAL["finalize"] == "eager") | (FACTORIAL["method"] == "baseline")])
    assert line(eager, method="hispec", head="dense", temperature=0.0)["final token"] == pytest.approx(0.2)


def test_planted_effects_are_found_and_multiply():
    table = stages.effects(FACTORIAL[FACTORIAL["temperature"] == 1.0]).set_index(["effect", "at"])
    for level, gain in {**HEAD, **TOKEN}.items():
        if gain != 1:
            assert table.loc[(level, ""), "ratio"] == pytest.approx(gain) and table.loc[(level, ""), "prompts"] == 16
    assert np.allclose(table.loc[[at != "" for _, at in table.index], "ratio"], 1)  # gains multiply
    assert table.loc[("flash", "deferred"), "verdict"].startswith("no difference")
    both = (FACTORIAL["head"] == "flash") & (FACTORIAL["finalize"] == "deferred")
    more = stages.effects(FACTORIAL.assign(seconds=FACTORIAL["seconds"].where(~both, FACTORIAL["seconds"] / 1.21)))
    assert np.allclose(more.loc[(more["effect"] == "flash") & (more["at"] == "deferred"), "ratio"], 1.21)  # the control
    assert stages.effects(FACTORIAL[FACTORIAL["head"] != "dense"]).empty


def test_the_cost_models_schedule_is_the_best_of_its_grid():
    dense = FACTORIAL[FACTORIAL["head"] == "dense"]
    deep, one = (line(stages.schedules(dense), method=name, temperature=1.0) for name in ("hispec", "self_speculation"))
    assert deep[["draft", "check_1", "check_2", "alpha_1", "alpha_2"]].tolist() == pytest.approx([0.1, 0.2, 0.8, 0.8, 0.8])
    tried = [nested(0.1, [Level(0.8, n, 0.2), Level(0.8, m, 0.8)]) for n in BURSTS for m in WAITS]
    assert deep["predicted"] == pytest.approx(max(tokens / time for tokens, time in tried)) and deep["free"] > deep["predicted"]
    alone = [nested(0.1, [Level(0.8, n, 0.2)]) for n in BURSTS]
    assert one["predicted"] == one["free"] == pytest.approx(max(tokens / time for tokens, time in alone))
    assert scheduled(0.1, [0.2, 0.8], [deep["even"]] * 2)[0] == pytest.approx(1.0, abs=0.01)
    dear = line(stages.schedules(dense.assign(check_1_seconds=0.2)), method="hispec", temperature=1.0)
    assert np.isnan(dear["even"]) and dear["predicted"] < deep["predicted"]  # the control: no acceptance is enough
    assert stages.schedules(dense[dense["exits"] == ""]).empty


def test_every_change_gives_what_was_planted_and_gains_multiply():
    found, place = stages.factors(FACTORIAL), {"method": "hispec", "temperature": 1.0}
    for token, total in TOKEN.items():
        one = line(found, change="head", finalize=token, **place)
        assert (one["ratio"], one["over_plain"]) == pytest.approx((1.1, 1.1 * total)) and one["head"] == "flash"
    late = found[(found["change"] == "final token") & (found["method"] == "hispec")]
    assert set(late["head"]) == set(HEAD) and late["ratio"].tolist() == pytest.approx([1.2] * len(late))
    both = line(found, change="both", **place)
    assert both["ratio"] == pytest.approx(1.32) == both["product"]
    assert "head" not in set(stages.factors(FACTORIAL[FACTORIAL["head"] != "dense"])["change"])

    table = stages.factors(FACTORIAL)
    assert NOT_HERE in shown(table[table["method"] == "magic"], {"method": "who"}).data
    page = shown(table, {"method": "who", "product": "product"}).data
    assert "<th>who</th>" in page and "HiSpec" in page and "1.32" in page
    twice = shown(table.assign(sampling="warm", whole=2.0), {"method": "", "sampling": "how", "whole": "", "product": ""}).data
    assert twice.count("<th></th>") == 3 and "<td>2</td>" in twice and "1.32" in twice


TIMED = {"step_seconds": 0.01, "prefill_seconds": 0.0, "burst_seconds": 0.004, "check_1_seconds": 0.01, "finalize_seconds": 0.01}
RACE, PIECES = results(race(prompts=4, turns=1).assign(**TIMED)), results(pieces())
RUNS, STEPS = results(runs()), results(steps())
WHOLE = factorial()
OF = {
    "waterfall": (RACE, PIECES), "throughput": (RACE,), "final_token": (RACE,), "ledger": (RACE,),
    "head_recall": (results(recall_rows()),), "draft_race": (RUNS,),
    "draft_steps": (STEPS,), "predicted_measured": (RUNS,), "combined": (WHOLE,), "head_share": (WHOLE,),
}  # fmt: skip


@pytest.mark.parametrize("name", OF)
def test_a_figure_names_its_source_and_has_a_page_without_lines(name):
    assert {*OF, "answers", "timeline"} == set(figures.__all__)
    draw = getattr(figures, name)
    picture = draw(*OF[name])
    boxes = [axis.get_position().bounds for axis in picture.figure.axes]
    assert len(set(boxes)) == len(boxes)  # no two axes in one place
    assert f"figures.{name}" in picture.source and MACHINE in picture.source and MACHINE in picture.svg
    assert "<svg" in draw(*(results(each.frame[:0]) for each in OF[name])).svg

"""Every claim of the three works has a line; ours agrees where its interval holds the printed ratio."""

import dataclasses

import pytest

from flashspec.study import papers, parts, race
from flashspec.study.claims import claims, judged, scoreboard


def test_every_claim_has_a_line_and_every_work_has_claims():
    board = scoreboard()
    assert set(board["claim"]) == {claim.claim for claim in claims()} and board["why"].str.len().gt(20).all()
    assert set(board["work"]) == {"thesis", "Decoding Speculative Decoding", "HiSpec"}
    printed = {round(claim.printed, 3) for claim in claims()}
    stated = [papers.THESIS[name] for name in ("projection", "draft_step", "eager", "deferred")]
    assert {*stated, papers.YAN_HEADLINE, papers.YAN_TUNED, papers.HISPEC_OVER_SELF} <= printed


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.claim)
def test_a_claim_names_a_preset_and_columns_that_there_are(claim):
    for preset, kind in ((claim.race, race), (claim.parts, parts)):
        if preset:
            assert preset in kind.EXPERIMENT.presets
            columns = {field.name for field in dataclasses.fields(kind.Row)}
            assert {*claim.mine, *claim.over} <= columns
    assert not (claim.race and claim.parts) and (claim.mine or not claim.race)


@pytest.mark.parametrize(("printed", "verdict"), [(1.2, "agrees"), (1.31, "differs: less here"), (1.09, "differs: more here")])
def test_they_agree_where_the_interval_holds_the_printed_ratio(printed, verdict):
    line = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "1.20×", "temperature": 0.0}
    assert judged(printed, line) == {"sampling": "greedy", "measured": "1.20×", "verdict": verdict}
    assert judged(printed, {**line, "temperature": 1.0})["sampling"] == "T = 1"


def test_without_tables_nothing_is_claimed(tmp_path):
    assert set(scoreboard(tmp_path)["verdict"]) == {"not testable here"}

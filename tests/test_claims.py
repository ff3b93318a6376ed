"""Every claim of the three works has a line; ours agrees where its interval holds the printed ratio."""

import pytest

from flashspec.study.claims import CLAIMS, judged, measured, scoreboard

CLAIMED = {
    "thesis2026": {
        "projection", "draft_step", "eager", "deferred", "deferred_dense / eager_dense", "deferred_flash / eager_flash",
    },
    "yan2024decoding": {"headline", "most", "tuned", "wide_rate / deep_rate", "deep_draft_ms / wide_draft_ms", "accuracy"},
    "hispec2025": {"over_self", "most", "over_plain", "quarter"},
}  # fmt: skip


def rowless(rows):
    """What the works claim and no line of the scoreboard answers."""
    answered = {(claim["work"], claim["of"]) for claim in CLAIMS if claim["claim"] in set(rows["claim"])}
    return {(work, name) for work, made in CLAIMED.items() for name in made} - answered


def test_every_claim_of_the_three_works_has_a_line_with_its_number_its_label_and_a_reason(tmp_path):
    board = scoreboard()
    assert rowless(board) == set() and len(CLAIMED) == board["work"].nunique() == 3
    assert rowless(board.iloc[1:]) == {("thesis2026", "projection")}  # the control
    assert board["why"].str.len().gt(20).all() and board["source"].str.contains(r"\[[SNCI]\]$").all()
    printed = dict(zip(board["claim"], board["printed"], strict=True))
    assert printed["and the whole draft step"] == 1.108 and len(printed) == len(CLAIMS)
    assert printed["A deferred final token over an eager one, dense draft"] == 10.731 / 9.769
    assert set(scoreboard(tmp_path)["verdict"]) == {"not testable here"}  # without tables


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"])
def test_a_claim_is_answered_by_a_stored_table_or_says_that_it_is_not(claim):
    found = measured(claim)
    assert ("reading" in claim) == bool(len(found)) and found[["ratio", "low", "high"]].notna().all(axis=None)


@pytest.mark.parametrize(("printed", "verdict"), [(1.2, "agrees"), (1.31, "differs: less here"), (1.09, "differs: more here")])
def test_they_agree_where_the_interval_holds_the_printed_ratio(printed, verdict):
    line = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "1.20×", "temperature": 0.0}
    assert judged(printed, line) == {"sampling": "greedy", "measured": "1.20×", "verdict": verdict}
    assert judged(printed, {**line, "temperature": 1.0})["sampling"] == "T = 1"

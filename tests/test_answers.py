"""The study's answers come from whatever a table holds, and are what was put into it."""

from __future__ import annotations

import pytest

pytest.importorskip("pandas")

from test_compare import race

from flashspec.study import answers, figures

FLASH = answers.Question("FlashHead", "many-1", {"head": "flash"}, {"head": "dense"}, 5)


def test_a_ratio_is_that_of_the_same_format() -> None:
    found = answers.ratio(race(prompts=16, noise=0.0), FLASH)
    assert len(found) and found["ratio"].to_numpy() == pytest.approx(1.65 / 1.5)  # not over the faster int8


def test_a_table_without_one_side_gives_no_ratio_and_the_page_says_so() -> None:
    frame = race(prompts=16, noise=0.0)
    assert answers.ratio(frame[frame["head"] != "flash"], FLASH).empty
    lines = answers.answers(answers.DECISIONS, {})
    assert set(lines["verdict"]) == {answers.NOT_HERE} and len(lines) == len(answers.DECISIONS)
    assert answers.said(lines, "FlashHead") == answers.said(lines, lines["question"][0]) == answers.NOT_HERE
    assert len(answers.shown(lines)) == len(lines) and "<svg" in figures.answers(lines=lines).svg
    assert answers.checks(None).empty

"""What was asked of predictions is met or missed where it should be, and acceptance comes from prompts of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tables
import tables_drafts as made

pytest.importorskip("pandas")

from flashspec.measure.prompts import load_prompts
from flashspec.study import bars, foretold, readings
from flashspec.study.experiments import draft_throughput, end_to_end, predicted_vs_measured, sweep_350
from flashspec.study.readings import Missing


def test_a_bar_is_met_or_missed_at_its_edge() -> None:
    assert bars.at_most(5.0, 5) == "5 %, meets the 5 % asked for" and "misses the 5 %" in bars.at_most(5.01, 5)
    assert bars.at_least(1.2, 1.2, "×").startswith("1.2×, meets") and "misses" in bars.at_least(1.19, 1.2, "×")


def test_errors_are_held_against_what_was_asked(tmp_path: Path) -> None:
    found = made.runs(tmp_path)
    table = foretold.predictions(found.frame, foretold.parts_of(found), made.counts().frame)
    assert foretold.verdict(table).count("meets") == 2
    assert foretold.verdict(table.assign(seconds=1.2 * table["seconds"])).count("misses") == 2
    assert (
        foretold.size_verdict(table)
        == "100 tokens, misses the 256 tokens asked for, behind 1 prompts, misses the 4 prompts asked for"
    )
    assert foretold.size_verdict(table.assign(emitted=256, prompts=4)).count("meets") == 2
    lines = foretold.scores({"one": table, "two": foretold.over_kinds(table)})
    assert list(lines["runs"]) == [len(table), len(table) // 2] and lines.loc["one", "runs within 10 %, %"] == 100


def test_hindsight_takes_a_runs_own_counts_and_leaves_the_error_of_its_parts(tmp_path: Path) -> None:
    found = made.runs(tmp_path)
    parts = foretold.parts_of(found)
    table = foretold.predictions(found.frame, parts, made.counts().frame)
    unlucky = table.assign(rounds=2 * table["rounds"], drafted=2 * table["drafted"])
    same = foretold.in_hindsight(table, parts)
    assert list(same["predicted"]) == pytest.approx(list(table["predicted"]))
    assert (foretold.in_hindsight(unlucky, parts)["predicted"] > 1.5 * same["predicted"]).all()


def test_counts_come_from_prompts_that_no_run_used() -> None:
    def table(**params):
        return SimpleNamespace(origin={"params": {"prompts": "", **params}})

    counts = table(skip=8, per_kind=8)
    assert "the first 8 prompts of each kind at most" in foretold.apart(counts, table(per_kind=8), table(per_kind=1))
    with pytest.raises(Missing, match="the first 9 prompts"):
        foretold.apart(counts, table(per_kind=1), table(per_kind=9))
    with pytest.raises(Missing, match="same prompts file"):
        foretold.apart(counts, table(per_kind=1, prompts="mine.json"))


def test_the_end_to_end_study_is_foretold_from_its_parts_and_other_prompts() -> None:
    """Counts of other prompts that equal the runs' own give the run's own forecast; twice the rounds give a longer one."""
    frame = tables.end_to_end().frame
    frame = frame[(frame["draft"] == frame["draft"].iloc[0]) & (frame["rule"] == "coupling")]
    keys = ["draft", "method", "probes", "k", "temperature", "rule", "kind"]
    counts = frame[frame["k"] > 0].groupby(keys)[["rounds", "drafted", "emitted"]].sum().reset_index().assign(digest="d")
    told = foretold.of_study(frame, counts).reset_index(drop=True)
    own = readings.predictions(frame[frame["k"] > 0]).reset_index(drop=True)
    assert list(told["predicted"]) == pytest.approx(list(own["predicted"]))
    longer = foretold.of_study(frame, counts.assign(rounds=2 * counts["rounds"]))
    assert longer["predicted"].sum() > told["predicted"].sum()
    with pytest.raises(Missing, match="replayed"):
        foretold.of_study(frame, counts.assign(k=99))


def test_the_default_runs_are_large_enough_and_apart_from_the_prompts_of_their_acceptance() -> None:
    kinds = {prompt.kind for prompt in load_prompts(None)}
    told = predicted_vs_measured.Params()
    sweep, race = sweep_350.Params(), draft_throughput.Params()
    sizes = {"sweep": (sweep, sweep.per_kind), "race": (race, race.per_kind * len(kinds))}  # prompts of one run
    for params, prompts in sizes.values():
        assert prompts >= foretold.PROMPTS and prompts * params.new_tokens >= foretold.TOKENS
        assert params.per_kind <= told.skip and params.prompts == told.prompts
        assert set(params.ks) <= set(told.ks) and set(params.temperatures) <= set(told.temperatures)
    assert race.ks == tuple(range(1, 13))
    known = end_to_end.Params()
    new = [k for k in sweep.ks if k not in known.ks]
    unseen = 1 - (1 - len(new) / len(sweep.ks)) * len(set(sweep.temperatures) & set(known.temperatures)) / len(sweep.temperatures)
    assert 100 * unseen >= foretold.UNSEEN

"""What a gain would take, from made-up parts whose answer is known."""

import pytest
import tables

from flashspec.study import aims
from flashspec.study.limits import head_words, limits, of_head, off_gain, prompt_share, round_of, round_words, spread, words
from flashspec.theory import Interval, speedup, tokens_per_check
from flashspec.theory.rounds import Costs

pandas = pytest.importorskip("pandas")
SETTING = {"draft": "main", "temperature": 1.0, "rule": "speculative", "finalize": "deferred"}


def line(method: str, k: int, seconds: float, accepted: int, **parts: float) -> dict:
    counts = {"rounds": 100, "drafted": 100 * k, "accepted": accepted, "emitted": 100 + accepted, "forwards": 100}
    own = {"method": method, "k": k, "probes": 0, "kind": "code", "repeat": 0, "seconds": seconds}
    return SETTING | own | counts | {f"{n}_seconds": parts.get(n, 0.0) for n in ("draft", "check", "step", "prefill", "overhead")}


def frame(check: float = 3.0):
    return pandas.DataFrame([line("baseline", 0, 200.0, 0, draft=2.0), line("dense", 2, 350.0, 110, draft=0.3, check=check)])


def test_the_needed_acceptance_gives_the_wanted_gain_and_a_little_less_does_not():
    found, costs = limits(frame(), "dense", 1.5, **SETTING), Costs(0.3, 3.0)
    assert found.needed is not None
    assert speedup(tokens_per_check(found.needed, 2), costs, 2, 2.0) == pytest.approx(1.5)
    assert speedup(tokens_per_check(found.needed - 0.05, 2), costs, 2, 2.0) < 1.5
    assert tokens_per_check(found.now, 2) == pytest.approx(2.1)
    assert found.free == pytest.approx(2.0 * 2.1 / 3.0)
    assert found.parts == pytest.approx(2.0 * 2.1 / 3.6)
    assert f"{found.needed:.2f}" in words(found, 1.5)


def test_where_no_acceptance_helps_the_sentence_says_so():
    found = limits(frame(check=6.0), "dense", 1.5, **SETTING)
    assert found.needed is None and "no acceptance would do" in words(found, 1.5)


def test_a_round_is_told_by_its_parts():
    found = round_of(frame(), "dense", **SETTING)
    assert (found.draft, found.check, found.seconds, found.tar) == pytest.approx((0.6, 3.0, 3.6, 2.1))
    assert "drafting takes 17 %, the check 83 %, the loop 0 %" in round_words(frame(), "dense", **SETTING)


def test_a_faster_head_is_bounded_by_the_share_of_drafting():
    both = pandas.concat([frame(), pandas.DataFrame([line("flash", 2, 340.0, 80, draft=0.15, check=3.0)])])
    found = of_head(both, "flash", "dense", **SETTING)
    assert (found.time, found.tokens) == pytest.approx((3.3 / 3.6, 1.8 / 2.1))
    assert found.free == pytest.approx(3.6 / 3.0)
    assert f"{found.free:.2f}×" in head_words(found)


@pytest.mark.parametrize("slower", [1.0, 1.2])
def test_a_foretold_gain_is_off_by_what_the_clock_adds(slower):
    foretold = {"baseline": 210 * 2.0, "dense": 100 * (2 * 0.3 + 3.0)}
    rows = [
        line("baseline", 0, foretold["baseline"], 110, draft=2.0),
        line("dense", 2, slower * foretold["dense"], 110, draft=0.3, check=3.0),
    ]
    rows = [{**row, "drafted": 0 if row["k"] == 0 else 200, "prompts": 1, "repeat": turn} for row in rows for turn in range(3)]
    assert off_gain(pandas.DataFrame(rows), "dense", "baseline", **SETTING) == pytest.approx(1 / slower - 1)
    assert spread(pandas.DataFrame(rows), "dense", **SETTING) == 0.0


def test_the_prompts_share_is_its_time_over_the_whole():
    rows = [{**line("dense", 2, 40.0, 110, prefill=3.0), "prompts": 2, "repeat": turn} for turn in range(3)]
    assert prompt_share(pandas.DataFrame(rows), "dense", **SETTING) == pytest.approx(0.15)


def test_aims_are_judged_by_their_numbers():
    assert aims.reached(Interval(1.6, 1.4, 1.8), 1.5) == "yes, within the interval"
    assert (aims.reached(Interval(1.6, 1.55, 1.8), 1.5), aims.reached(Interval(1.4, 1.3, 1.45), 1.5)) == ("yes", "no")
    table = aims.chain(*(made().frame for made in (tables.projection, tables.draft_step, tables.end_to_end)))
    verdicts = dict(zip(table.index, table["reached"], strict=True))
    assert verdicts["draft step at Qwen3-0.6B's shape, FlashHead over dense"] == "yes"
    assert verdicts["projection at Qwen3-0.6B's shape, FlashHead over dense"] == "no"
    assert verdicts["dense draft over plain decoding, Gumbel coupling"] == "yes"
    assert table.loc["dense draft over plain decoding, speculative sampling", "found"].startswith("the table has no row")
    assert list(aims.inside(tables.ledger().frame, tables.peers().frame)["reached"]) == ["yes", "yes", "no"]


def test_a_row_that_is_not_stored_says_how_to_get_it(tmp_path):
    assert "flashspec run end_to_end --preset int4" in aims.four_bits(tmp_path)

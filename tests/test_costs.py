"""Parts stand ready as a decode leaves them: lengths share one prompt, groups go round alone, bursts are no multiples."""

from __future__ import annotations

import pytest
import tiny

from flashspec.decoding.method import METHODS, Method, build
from flashspec.measure.costs import PairCosts, PairParts, Setting, parts_of
from flashspec.measure.parts import prepare, prepare_each
from flashspec.sampling import GREEDY
from flashspec.theory import Costs, break_even, round_time, throughput

PROMPT, TEXT = (1, 2, 3, 4, 5), (6, 7)


def test_lengths_share_one_prompt_and_act_as_if_alone():
    models = tiny.pair()
    made_by = {k: lambda k=k: build(Method("model", k=k), models, GREEDY, 20) for k in (1, 3)}
    shared = prepare_each(made_by[3], PROMPT, TEXT, (1, 3))
    readers = [stage.reader for stage in shared[1].stages]
    assert [stage.reader for stage in shared[3].stages] == readers
    for k, bench in shared.items():
        alone = prepare(made_by[k], PROMPT, TEXT)
        rows = {one: [*one.burst(), *one.check()] for one in (bench, alone)}
        assert bench.block == k and bench.state.final == alone.state.final and bench.state.length == alone.state.length
        assert [(event.stage, event.rows) for event in rows[bench]] == [(0, k), (1, k + 1)] and rows[bench] == rows[alone]
    with pytest.raises(ValueError, match="a draft and a target, got 1 stages"):
        prepare_each(lambda: build(METHODS["baseline"], models, GREEDY, 20), PROMPT, TEXT, (1,))


def test_a_group_goes_round_by_itself_and_one_round_does_not_count():
    seen: list[str] = []
    groups = tuple({name: lambda name=name: seen.append(name) for name in names} for names in (("a", "behind b"), ("c",)))
    found = PairParts(groups, (1,)).turn(2)
    assert seen == ["a", "behind b"] * 3 + ["c"] * 3 and set(found) == {"a", "c"}


def test_every_length_of_every_writer_is_timed_behind_a_check():
    writers = [Method("model"), Method("model", "flash", probes=2)]
    found = parts_of(tiny.pair(), writers, (3, 1), Setting(PROMPT, TEXT), eager=False)
    names = [tuple(group) for group in found.groups]
    assert found.ks == (1, 3) and ("burst 1 dense", "check 1") in names and ("burst 3 flash P=2", "behind check 3") in names
    assert not any("eager" in name for group in names for name in group)
    assert all(seconds > 0 for seconds in found.turn().values())


def test_a_burst_is_no_multiple_of_a_token():
    turn = {
        "step": 1.0,
        "finalize": 1.0,
        "overhead": 0.1,
        **{f"check {k}": 2.0 for k in (1, 4)},
        **{f"eager {k}": 3.0 for k in (1, 4)},
    }
    bursts = {"burst 1 dense": 0.5, "burst 4 dense": 1.1}
    costs, step = PairCosts(({**turn, **bursts},) * 3, (1, 4)).costs(Method("model"))
    assert step == 1.0 and [costs.burst(k) for k in (1, 2, 4)] == pytest.approx([0.5, 0.7, 1.1])
    assert round_time(costs, 4) == pytest.approx(1.1 + 2.0 + 0.1) and throughput(3.2, costs, 4) == pytest.approx(1.0)
    assert Costs(0.5, 2.0, overhead=0.1).burst(4) == 2.0
    longest = break_even(3.2, costs, 4, 1.0).draft
    assert longest is not None and 4 * longest == pytest.approx(1.1)
    with pytest.raises(ValueError, match="draft"):
        Costs(lambda block: -1.0, 2.0).burst(1)

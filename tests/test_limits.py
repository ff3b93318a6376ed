"""What a gain would take, from made-up parts whose answer is known."""

import pytest

from flashspec.study.limits import limits, words
from flashspec.theory import speedup, tokens_per_check
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
    assert f"{found.needed:.2f}" in words(found, 1.5)


def test_where_no_acceptance_helps_the_sentence_says_so():
    found = limits(frame(check=6.0), "dense", 1.5, **SETTING)
    assert found.needed is None and "no acceptance would do" in words(found, 1.5)

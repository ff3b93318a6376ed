"""The bench gives a speedup only where one may be given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flashspec.measure.bench import Comparison, Refused, Timing, interleave, paired_ratio
from flashspec.measure.certificate import Certificate

TEXT = (1, 2, 3, 4)
OTHER = (1, 2, 9, 4)
TIE = Certificate(2, (3, 9), gap=0.01, noise=0.01, dtype="bfloat16")
DEFECT = Certificate(2, (3, 9), gap=1.0, noise=0.01, dtype="bfloat16")


def runs(name: str, seconds: tuple[float, ...], tokens: tuple[int, ...] = TEXT) -> tuple[Timing, ...]:
    return tuple(Timing(name, repeat, value, tokens) for repeat, value in enumerate(seconds))


SLOW = runs("baseline", (2.0, 2.1, 2.2, 1.9, 2.0))
FAST = runs("flash", (1.0, 1.05, 1.1, 0.95, 1.0))
ALIKE = runs("flash", (2.1, 2.0, 2.1, 2.0, 1.9))


def test_a_speedup_of_two_is_two() -> None:
    comparison = Comparison(SLOW, FAST)
    assert comparison.speedup.value == pytest.approx(2.0)
    assert comparison.speedup.shows_difference and comparison.verdict.startswith("2.000x")


def test_an_interval_with_one_inside_shows_no_difference() -> None:
    comparison = Comparison(SLOW, ALIKE)
    assert not comparison.speedup.shows_difference
    assert comparison.verdict.startswith("no difference shown")


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        (Comparison(SLOW, runs("flash", (1.0,) * 5, TEXT[:3])), "token counts differ"),
        (Comparison(SLOW, FAST[:4]), "5 runs of the baseline"),
        (Comparison(SLOW, ()), "5 runs of the baseline stand against 0"),
        (Comparison((), ()), "no run emitted a token"),
        (Comparison(runs("baseline", (2.0,) * 5, ()), runs("flash", (1.0,) * 5, ())), "no run emitted a token"),
        (Comparison(SLOW, FAST, twin=((TEXT, OTHER),)), "float32 twin gives another text from token 2"),
        (Comparison(SLOW, FAST, certificates=(DEFECT,)), "defect"),
        (Comparison(SLOW, runs("flash", (1.0,) * 5, OTHER)), "no float32 twin"),
        (Comparison(SLOW, runs("flash", (1.0,) * 5, OTHER), certificates=(TIE,)), "no float32 twin"),
        (Comparison(SLOW, runs("flash", (1.0,) * 5, OTHER), twin=((TEXT, TEXT),)), "divergence certificate"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparison: Comparison, reason: str) -> None:
    assert comparison.verdict.startswith("refused: ") and reason in comparison.verdict
    with pytest.raises(Refused, match="refused: "):
        _ = comparison.speedup


def test_a_certified_tie_with_an_equal_twin_is_compared() -> None:
    comparison = Comparison(SLOW, runs("flash", (1.0,) * 5, OTHER), twin=((TEXT, TEXT),), certificates=(TIE,))
    assert comparison.refusal is None and comparison.speedup.value == pytest.approx(2.0)


def test_a_promise_of_distribution_compares_different_texts() -> None:
    different = runs("flash", (1.0,) * 5, OTHER)
    assert Comparison(SLOW, different, promise="distribution").refusal is None
    assert Comparison(SLOW, different).refusal is not None
    with pytest.raises(ValueError, match="promise must be"):
        Comparison(SLOW, FAST, promise="speed")


def test_turns_are_interleaved_and_warm_up_is_discarded() -> None:
    order: list[str] = []

    def contestant(name: str) -> Iterator[int]:
        order.append(name)
        yield from TEXT

    timings = list(interleave({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, repeats=2, warmup=1))
    assert order == ["a", "b"] * 3
    assert [(t.contestant, t.repeat, t.tokens) for t in timings] == [
        ("a", 0, TEXT), ("b", 0, TEXT), ("a", 1, TEXT), ("b", 1, TEXT),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least 1"):
        list(interleave({}, repeats=0))


def test_the_interval_is_seeded_and_needs_three_pairs() -> None:
    above, below = [2.0, 2.2, 1.8, 2.4], [1.0, 1.2, 0.8, 1.0]
    assert paired_ratio(above, below, seed=3) == paired_ratio(above, below, seed=3)
    with pytest.raises(ValueError, match="at least 3 pairs"):
        paired_ratio(above[:2], below[:2])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_ratio(above, below[:2])


def test_the_interval_covers_the_true_ratio() -> None:
    import numpy as np

    dice = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        noise = dice.lognormal(0, 0.1, (2, 15))
        low, high = paired_ratio(1.5 * noise[0], noise[1], seed=trial, draws=400)[1:]
        covered += low <= 1.5 <= high
    assert covered >= 180

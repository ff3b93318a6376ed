"""A split model against formulas that were worked out by hand, and against what must stay true as devices are added."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flashspec.theory import Devices, Weights, speedup, split_costs, split_pass, tokens_per_check

TARGET, DRAFT = Weights(16e9, 64), Weights(1e9, 28)
FREE = Devices(4, 4e12, 0.0)


def test_a_pass_is_its_share_of_the_bytes_and_two_waits_a_layer() -> None:
    assert split_pass(TARGET, replace(FREE, count=1)) == pytest.approx(4e-3)
    assert split_pass(TARGET, FREE) == pytest.approx(1e-3)
    assert split_pass(TARGET, replace(FREE, all_reduce=10e-6)) == pytest.approx(1e-3 + 128 * 10e-6)


def test_one_device_waits_for_nobody() -> None:
    assert split_pass(TARGET, Devices(1, 4e12, 1.0)) == split_pass(TARGET, Devices(1, 4e12, 0.0))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_at_the_break_even_all_reduce_many_are_as_fast_as_one(count: int) -> None:
    devices = replace(FREE, count=count)
    edge = TARGET.bytes / devices.bandwidth * (1 - 1 / count) / (2 * TARGET.layers)
    one = split_pass(TARGET, replace(FREE, count=1))
    below, at, above = (split_pass(TARGET, replace(devices, all_reduce=share * edge)) for share in (0.9, 1.0, 1.1))
    assert at == pytest.approx(one) and below < one < above


def test_a_draft_that_is_not_split_brings_less_the_more_devices_share_the_target() -> None:
    found = []
    for count in (1, 2, 4, 8):
        costs, step = split_costs(TARGET, DRAFT, Devices(count, 4e12, 0.0))
        assert (costs.draft, costs.check(5)) == (pytest.approx(0.25e-3), step)
        found.append(speedup(tokens_per_check(0.7, 5), costs, 5, step))
    assert found == sorted(found, reverse=True) and found[0] > 2 * found[-1]


def test_the_control_waits_make_the_target_dear_and_speculation_worth_more() -> None:
    gains = []
    for wait in (0.0, 20e-6):
        costs, step = split_costs(TARGET, DRAFT, Devices(8, 4e12, wait))
        gains.append(speedup(tokens_per_check(0.7, 5), costs, 5, step))
    assert gains[0] < gains[1]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"bandwidth": 0.0}, {"all_reduce": -1e-6}, {"all_reduce": float("nan")}])
def test_devices_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(FREE, **wrong)

"""The host never waits for a drafted token, and once for a verification."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from toys import PROMPT, duo

from flashspec.decoding import cascade, rules
from flashspec.decoding.generate import request
from flashspec.sampling import Sampling

WAITS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
MADE_ON_THE_HOST = {"tensor", "arange"}


class Watch(TorchFunctionMode):
    """Counts conversions that would wait for the device, by part of the loop; numbers the host made itself are free."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.waits, self.host = "", Counter(), []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in WAITS and not any(args[0] is known for known in self.host):
            self.waits[self.part] += 1
        result = function(*args, **(kwargs or {}))
        if name in MADE_ON_THE_HOST:
            self.host.append(result)
        return result


@pytest.fixture
def watch(monkeypatch):
    made = Watch()
    for name in ("draft", "check"):
        monkeypatch.setattr(cascade, name, inside(made, name, getattr(cascade, name)))
    return made


def inside(watch: Watch, name: str, action):
    def part(*args):
        watch.part = name
        try:
            return action(*args)
        finally:
            watch.part = ""

    return part


def watched(watch: Watch, name: str, rule: str, **options) -> tuple[Counter, int]:
    """Waits by part, and verifications, of one decode."""
    options = {"max_new_tokens": 13, "stop": (), "k": 4} | options
    ready = request(duo(0, torch.float32), PROMPT, name, Sampling(1.0, top_k=20, top_p=0.9, rule=rule), options)
    with watch:
        events = [event for step in ready.steps() for event in step.events]
    return watch.waits, sum(e.adds for e in events if e.stage)


@pytest.mark.parametrize("rule", ["coupling", "speculative"])
@pytest.mark.parametrize("name", ["dense", "flash", "hispec_flash"])
def test_a_burst_of_drafts_never_waits(name, rule, watch):
    waits, checks = watched(watch, name, rule)
    assert waits["draft"] == 0
    assert waits["check"] == checks


@pytest.mark.parametrize("k", [1, 6])
def test_waits_a_verification_do_not_grow_with_the_block(k, watch):
    waits, checks = watched(watch, "dense", "coupling", k=k)
    assert (waits["draft"], waits["check"]) == (0, checks)


def test_the_control_a_draft_that_looks_at_its_token_is_caught(watch, monkeypatch):
    def looking(self, scores, position, stage, draw=rules.GumbelCoupling.draw):
        drawn = draw(self, scores, position, stage)
        assert int(drawn.token) >= 0
        return drawn

    monkeypatch.setattr(rules.GumbelCoupling, "draw", looking)
    waits, _ = watched(watch, "dense", "coupling")
    assert waits["draft"] >= 4


def test_the_control_a_verdict_that_looks_is_caught(watch, monkeypatch):
    def looking(self, scores, waiting, verify=rules.GumbelCoupling.verify):
        verdict = verify(self, scores, waiting)
        assert int(verdict.kept) >= 0
        return verdict

    monkeypatch.setattr(rules.GumbelCoupling, "verify", looking)
    waits, checks = watched(watch, "dense", "coupling")
    assert waits["check"] == 2 * checks

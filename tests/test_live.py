"""What a page shows live is what was decoded: the counts are the run's, the colours cover the text."""

from __future__ import annotations

import re

import pytest
import tiny

from flashspec.decoding.generate import Output, generate
from flashspec.decoding.method import METHODS
from flashspec.decoding.models import Models
from flashspec.sampling import Sampling
from flashspec.study import live

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def outputs() -> dict[str, Output]:
    """One decode of every method on a tiny pair in float64, so that no tie can hide a bug."""
    import torch

    return live.decode_all(tiny.pair(torch.float64), PROMPT, Sampling(temperature=1.0), 24)


def test_every_method_is_decoded_and_prints_one_text(outputs: dict[str, Output]) -> None:
    assert set(METHODS) <= set(outputs)
    assert live.agreeing(outputs) == len(outputs) - 1
    assert live.table(outputs)["same text"].all()


def test_methods_whose_exits_a_target_has_not_are_left_out(outputs: dict[str, Output]) -> None:
    short = live.decode_all(Models(tiny.model(3), tiny.model(2)), PROMPT, Sampling(), 6)
    assert "hispec" in outputs and "hispec" not in short and {"baseline", "dense", "flash", "self_speculation"} <= set(short)
    assert live.forwards(short, "hispec") == live.NOT_OFFERED and live.forwards(short, "baseline") == 6
    assert live.preferred(short) is short["flash"]


def test_a_text_that_differs_is_shown_as_such(outputs: dict[str, Output]) -> None:
    other = Output("", [*outputs["flash"].tokens[:-1], -1], outputs["flash"].events, outputs["flash"].stats)
    assert not live.table({**outputs, "flash": other}).loc["flash", "same text"]
    assert live.agreeing({**outputs, "flash": other}) == len(outputs) - 2


def test_an_eager_final_token_costs_forwards(outputs: dict[str, Output]) -> None:
    assert outputs["dense, eager"].stats.forwards > outputs["dense"].stats.forwards


def test_colours_count_what_was_kept(outputs: dict[str, Output]) -> None:
    models = tiny.pair()
    page = live.coloured(models, "a < b", outputs["dense"]).data
    kinds = list(live.kinds(outputs["dense"]))
    assert "a &lt; b" in page
    assert len(re.findall("<span", page)) == len(outputs["dense"].tokens)
    assert kinds.count("accepted") == outputs["dense"].stats.accepted


def test_plain_decoding_writes_everything_itself() -> None:
    plain = generate(tiny.pair(), PROMPT, "baseline", Sampling(), max_new_tokens=8)
    assert set(live.kinds(plain)) == {"own"}

"""What a page shows live is what was decoded: the counts are the run's, the colours cover the text."""

import re

import pytest
import tiny
import torch

from flashspec import METHODS, Models, Output, Sampling, generate
from flashspec.study import live

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def outputs():
    return live.decode_all(tiny.pair(torch.float64), PROMPT, Sampling(temperature=1.0), 24)


def test_every_method_is_decoded_and_prints_one_text(outputs):
    assert set(METHODS) <= set(outputs)
    assert live.agreeing(outputs) == len(outputs) - 1
    assert live.table(outputs)["same text"].all()
    other = Output("", [*outputs["flash"].tokens[:-1], -1], outputs["flash"].events, outputs["flash"].stats)
    assert not live.table({**outputs, "flash": other}).loc["flash", "same text"]
    assert live.agreeing({**outputs, "flash": other}) == len(outputs) - 2
    assert outputs["dense, eager"].stats.forwards > outputs["dense"].stats.forwards


def test_methods_whose_exits_a_target_has_not_are_left_out(outputs):
    short = live.decode_all(Models(tiny.model(3), tiny.model(2)), PROMPT, Sampling(), 6)
    assert "hispec" in outputs and "hispec" not in short and {"baseline", "dense", "flash", "self_speculation"} <= set(short)
    assert live.forwards(short, "hispec") == live.NOT_OFFERED and live.forwards(short, "baseline") == 6
    assert live.preferred(short) is short["flash"]


def test_colours_count_what_was_kept(outputs):
    page, kinds = live.coloured(tiny.pair(), "a < b", outputs["dense"]).data, list(live.kinds(outputs["dense"]))
    assert "a &lt; b" in page and len(re.findall("<span", page)) == len(outputs["dense"].tokens)
    assert kinds.count("accepted") == outputs["dense"].stats.accepted
    plain = generate(tiny.pair(), PROMPT, "baseline", Sampling(), max_new_tokens=8)
    assert set(live.kinds(plain)) == {"own"}

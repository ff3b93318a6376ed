"""Bursts and verifications over static buffers give what the loop gives, token for token and score for score."""

import copy
from dataclasses import replace

import pytest
import torch
from test_counts import Watch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from toys import PROMPT, duo

from flashspec import Limits, Models, decode
from flashspec.decoding import ways
from flashspec.decoding.method import build, method_named
from flashspec.decoding.rules import rule_for
from flashspec.decoding.stages import in_turn, scripted
from flashspec.decoding.ways import CapturedBurst, CapturedScore, fastest
from flashspec.models import graphs
from flashspec.models.reader import SpanReader
from flashspec.sampling import Dice, Sampling, Scores

SAMPLINGS = {
    "greedy": Sampling(),
    "coupling": Sampling(0.7, top_k=20, seed=5),
    "speculative": Sampling(1.0, top_p=0.9, seed=2**63 + 6, rule="speculative"),
}
NAMES = ("dense", "flash", "hispec", "hispec_flash", "cascade")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
devices = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
sampled = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)


def noted(stage, notes):
    """A stage of which every burst and verification is noted, with what its reader has read."""

    def noting(verb):
        return lambda *given: notes.append((copy.deepcopy(found := verb(*given)), stage.reader.seen)) or found

    vars(stage).update(write=noting(stage.write), judge=noting(stage.judge))
    return stage


def close(mine, theirs):
    return torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9) if isinstance(mine, Tensor) else mine == theirs


def alike(stages, finalize="deferred"):
    """Whether static buffers write, score and decide what the loop does, over 24 tokens."""
    told = []
    for way in (fastest, in_turn):
        notes = []
        steps = decode([noted(stage._replace(way=way), notes) for stage in stages], PROMPT, Limits(24, (), finalize))
        told.append(tree_leaves([[(step.tokens, step.events) for step in steps], notes]))
    assert len(notes) > 16
    return len(told[0]) == len(told[1]) and all(map(close, *told))


def stages_of(name, sampling, where="cpu"):
    pair = duo(0)
    models = pair if where == "cpu" else Models(*(copy.deepcopy(model).to(where) for model in (pair.target, pair.draft)))
    return build(method_named(name, {"k": 3}), models, sampling, 64)


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    monkeypatch.setenv(graphs.FLAG, "auto" if torch.cuda.is_available() else "eager")
    monkeypatch.setattr(graphs, "KEYS", 24)


@devices
@pytest.mark.parametrize("name", NAMES)
@sampled
def test_static_buffers_draft_and_judge_as_the_loop_does(name, sampling, where):
    stages = stages_of(name, sampling, where)
    assert all(isinstance(fastest(stage)[0], CapturedScore) for stage in stages[1:])
    assert isinstance(fastest(stages[0])[1], CapturedBurst)
    assert alike(stages) and alike(stages, "eager")


def test_scripted_rules_and_typical_ones_are_captured_too():
    typical = stages_of("dense", Sampling(1.0, rule="typical"))
    for stages in (scripted(stages_of("dense", Sampling()), (0.9, 0.5, 0.5)), typical):
        assert isinstance(fastest(stages[0])[1], CapturedBurst) and isinstance(fastest(stages[1])[0], CapturedScore)
        assert alike(stages)


def test_the_control_a_step_at_the_wrong_place_and_another_seed_are_caught(monkeypatch):
    honest = CapturedBurst.step
    with monkeypatch.context() as patch:
        patch.setattr(CapturedBurst, "step", lambda self, n, rows, keys: honest(self, n, rows, 8))
        assert not alike(stages_of("dense", SAMPLINGS["coupling"]))
    other = rule_for(replace(SAMPLINGS["coupling"], seed=6), 61)
    monkeypatch.setattr(ways, "CapturedBurst", lambda reader, head, rule: CapturedBurst(reader, head, other))
    assert not alike(stages_of("dense", SAMPLINGS["coupling"]))


@sampled
def test_a_burst_never_waits_and_a_verification_waits_once_and_refuses_nan(sampling, monkeypatch):
    stages, watch = stages_of("dense", sampling), Watch()
    tokens = torch.tensor(PROMPT + [0] * 20)
    with watch:
        drawn, _ = watch.inside("draft", stages[0].write)(tokens, len(PROMPT), 3)
        watch.inside("check", stages[1].judge)(tokens[: len(PROMPT) + 3], len(PROMPT), drawn, 1)
    assert watch.waits["draft"] == 0 and watch.waits["check"] == 1
    monkeypatch.setattr(SpanReader, "rows", property(lambda self: torch.full_like(vars(self)["rows"], torch.nan)), raising=False)
    with pytest.raises(FloatingPointError, match="a model gave NaN logits"):
        stages[1].judge(tokens[: len(PROMPT) + 3], len(PROMPT), drawn, 1)


def test_stages_that_cannot_be_recorded_go_in_turn(monkeypatch):
    doubtful = build(method_named("hispec_adaptive", {}), duo(0), Sampling(), 64)
    lookup = build(method_named("lookup", {}), duo(0), Sampling(), 64)
    assert not any(isinstance(fastest(stages[0])[1], CapturedBurst) for stages in (doubtful, lookup))
    assert all(isinstance(fastest(stage)[0], CapturedScore) for stage in doubtful[:2])
    monkeypatch.setenv(graphs.FLAG, "0")
    plain = stages_of("dense", Sampling())
    assert fastest(plain[0]) == fastest(plain[1]) == (None, None)


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, -1])
def test_the_dice_of_tensors_are_those_of_numbers(seed):
    places, scores = [0, 1, 7, 100, 40_000, 2**40], Scores(None, torch.zeros(6, 61))
    on_device, dice = torch.tensor(places), Dice(seed)
    for use in ("draw", "accept", "residual"):
        assert torch.equal(dice.uniform(places, 3, use), dice.uniform(on_device, 3, use))
    assert torch.equal(dice.gumbel(scores, places, 61), dice.gumbel(scores, on_device, 61))
    assert not torch.equal(dice.uniform(places, 3, "draw"), Dice(seed + 1).uniform(on_device, 3, "draw"))

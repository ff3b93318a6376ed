"""Bursts and verifications over static buffers give what the loop gives, token for token and score for score."""

import copy

import pytest
import torch
from test_counts import Watch
from toys import PROMPT, duo

from flashspec import Limits, Models, decode
from flashspec.decoding import captured
from flashspec.decoding.captured import CapturedBurst, CapturedScore
from flashspec.decoding.method import build, method_named
from flashspec.decoding.scripted import scripted
from flashspec.decoding.stages import InTurn, StepByStep, Verbs, in_turn
from flashspec.decoding.ways import fastest
from flashspec.models import graphs
from flashspec.models.reader import SpanReader
from flashspec.sampling import DeviceDice, Dice, Sampling, Scores

SAMPLINGS = {
    "greedy": Sampling(),
    "coupling": Sampling(0.7, top_k=20, seed=5),
    "speculative": Sampling(1.0, top_p=0.9, seed=2**63 + 6, rule="speculative"),
}
NAMES = ("dense", "flash", "hispec", "hispec_flash", "cascade")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
devices = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
sampled = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)


class Shadow:
    """Verbs of a stage in turn, with every burst and verification also carried out over static buffers and compared."""

    bursts, checks = 0, 0

    def __init__(self, stage):
        self.reader, self.slow, self.fast = stage.reader, in_turn(stage), fastest(stage)

    def write(self, tokens, start, want):
        copied, seen = tokens.clone(), self.reader.seen
        fast = self.fast.write(copied, start, want)
        assert self.reader.seen == (start + want - 1 if want else seen)
        self.reader.seen = seen
        slow = self.slow.write(tokens, start, want)
        assert torch.equal(tokens, copied) and fast.rows == slow.rows
        for position, (mine, theirs) in enumerate(zip(fast.drawn, slow.drawn, strict=True), start):
            assert same(mine.scores, theirs.scores) and torch.equal(mine.sound, theirs.sound)
            assert torch.equal(mine.token, tokens[position : position + 1])
        Shadow.bursts += want
        return slow

    def judge(self, tokens, first, drawn, number):
        below, chain = self.reader, []
        while below is not None:
            chain.append((below, below.seen))
            below = below.below
        fast = self.fast.judge(tokens, first, drawn, number)
        for reader, seen in chain:
            reader.seen = seen
        slow = self.slow.judge(tokens, first, drawn, number)
        assert same(fast.scores, slow.scores) and fast._replace(scores=slow.scores) == slow
        Shadow.checks += 1
        return slow


def shadowed(stage):
    shadow = Shadow(stage)
    return Verbs(shadow.write, shadow.judge)


def same(mine, theirs):
    ids = mine.ids is theirs.ids is None or torch.equal(mine.ids, theirs.ids)
    return ids and torch.allclose(mine.logits, theirs.logits, rtol=1e-9, atol=1e-9)


def stages_of(name, sampling, where="cpu"):
    pair = duo(0)
    models = pair if where == "cpu" else Models(*(copy.deepcopy(model).to(where) for model in (pair.target, pair.draft)))
    return build(method_named(name, {"k": 3}), models, sampling, 64)


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    monkeypatch.setenv(graphs.FLAG, "auto" if torch.cuda.is_available() else "eager")
    monkeypatch.setattr(graphs, "KEYS", 24)
    Shadow.bursts = Shadow.checks = 0
    yield


def tokens_of(stages, finalize="deferred"):
    both = [stage._replace(way=shadowed) for stage in stages]
    return [token for step in decode(both, PROMPT, Limits(24, (), finalize)) for token in step.tokens]


@devices
@pytest.mark.parametrize("name", NAMES)
@sampled
def test_static_buffers_draft_and_judge_as_the_loop_does(name, sampling, where):
    stages = stages_of(name, sampling, where)
    assert all(isinstance(fastest(stage).judge.score, CapturedScore) for stage in stages[1:])
    assert isinstance(fastest(stages[0]).write, CapturedBurst)
    for finalize in ("deferred", "eager"):
        assert len(tokens_of(stages, finalize)) == 24
    assert Shadow.bursts > 24 and Shadow.checks > 8


def test_scripted_rules_and_typical_ones_are_captured_too():
    typical = stages_of("dense", Sampling(1.0, rule="typical"))
    for stages in (scripted(stages_of("dense", Sampling()), (0.9, 0.5, 0.5)), typical):
        assert isinstance(fastest(stages[0]).write, CapturedBurst) and isinstance(fastest(stages[1]).judge.score, CapturedScore)
        assert len(tokens_of(stages)) == 24


def test_the_control_a_step_at_the_wrong_place_and_another_seed_are_caught(monkeypatch):
    honest = CapturedBurst.step
    with monkeypatch.context() as patch:
        patch.setattr(CapturedBurst, "step", lambda self, n, rows, keys: honest(self, n, rows, 8))
        with pytest.raises(AssertionError):
            tokens_of(stages_of("dense", SAMPLINGS["coupling"]))
    monkeypatch.setattr(captured, "DeviceDice", lambda seed: DeviceDice(seed + 1))
    with pytest.raises(AssertionError):
        tokens_of(stages_of("dense", SAMPLINGS["coupling"]))


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
    assert not any(isinstance(fastest(stages[0]).write, CapturedBurst) for stages in (doubtful, lookup))
    assert all(isinstance(fastest(stage).judge.score, CapturedScore) for stage in doubtful[:2])
    monkeypatch.setenv(graphs.FLAG, "0")
    plain = stages_of("dense", Sampling())
    assert isinstance(plain[0].write, StepByStep) and isinstance(plain[1].judge.score, InTurn)


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, -1])
def test_the_devices_dice_are_the_hosts(seed):
    places, scores = torch.tensor([0, 1, 7, 100, 40_000, 2**40]), Scores(None, torch.zeros(6, 61))
    for use in ("draw", "accept", "residual"):
        assert torch.equal(Dice(seed).uniform(places, 3, use), DeviceDice(seed).uniform(places, 3, use))
    assert torch.equal(Dice(seed).gumbel(scores, places, 61), DeviceDice(seed).gumbel(scores, places, 61))
    assert not torch.equal(Dice(seed).uniform(places, 3, "draw"), DeviceDice(seed + 1).uniform(places, 3, "draw"))

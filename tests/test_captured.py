"""Bursts and verifications over static buffers give what the loop gives, token for token and score for score."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from flashspec.decoding.burst import StepByStep, burst_of
from flashspec.decoding.judge import InTurn, judge_of
from flashspec.decoding.settle import Ask, settled
from test_decoding_sync import Watch
from toys import PROMPT, duo

from flashspec.decoding import captured, cascade
from flashspec.decoding.captured import CapturedBurst, captured_burst, captured_check, records_burst, records_check
from flashspec.decoding.cascade import Cascade, Limits, Stage
from flashspec.decoding.method import build, method_named
from flashspec.decoding.models import Models
from flashspec.decoding.scripted import scripted
from flashspec.model import graphs
from flashspec.model.reader import SpanReader
from flashspec.scores import DeviceDice, Dice, Sampling, Scores

SAMPLINGS = {
    "greedy": Sampling(),
    "coupling": Sampling(0.7, top_k=20, seed=5),
    "speculative": Sampling(1.0, top_p=0.9, seed=2**63 + 6, rule="speculative"),
}
NAMES = ("dense", "flash", "hispec", "hispec_flash", "cascade")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
devices = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
named = pytest.mark.parametrize("name", NAMES)
sampled = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)


class Shadowed(Cascade):
    """The loop, with every burst and verification also carried out over static buffers and compared."""

    bursts, checks = 0, 0

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.writer = StepByStep(self.stages[0])

    def draft(self) -> tuple[int, int, int]:
        start, stage = self.length, self.stages[0]
        want = min(self.burst, self.room - (len(self.stages) > 1))
        tokens = self.tokens.clone()
        with forgotten(self.stages):
            drawn = captured_burst(stage).write(tokens, start, want)
            assert stage.reader.seen == start + want - 1 if want else not drawn
        result, drafts = super().draft(), self.sound[len(self.sound) - want :]
        assert torch.equal(self.tokens, tokens)
        for position, (mine, flag) in enumerate(zip(drawn, drafts, strict=True), start):
            assert same(mine.scores, self.proposals[position]) and torch.equal(mine.sound, flag)
            assert torch.equal(mine.token, tokens[position : position + 1])
        Shadowed.bursts += want
        return result

    def check(self, i: int) -> tuple[int, int, int]:
        first, stop, flags = self.marks[i], self.length, list(self.sound)
        proposals = [self.proposals[p] for p in range(first, stop)]
        with forgotten(self.stages):
            judged = captured_check(self.stages[i], i).judge(self.tokens[:stop], first, proposals, flags)
        with forgotten(self.stages):
            again = InTurn(self.stages[i], i).judge(self.tokens[:stop], first, proposals, flags)
        assert judged.asked == again.asked and judged.verdict[:2] == again.verdict[:2]
        assert same(judged.verdict.scores, again.verdict.scores) and same(judged.scores, again.scores)
        result = super().check(i)
        assert (judged.verdict.kept, judged.verdict.token) == (result[1], int(self.tokens[first + result[1]]))
        Shadowed.checks += 1
        return result


class forgotten:
    """A while after which every reader stands where it stood."""

    def __init__(self, stages: list[Stage]) -> None:
        self.readers = [stage.reader for stage in stages]

    def __enter__(self) -> None:
        self.before = [(reader.seen, reader.rows_read) for reader in self.readers]

    def __exit__(self, *_: object) -> None:
        for reader, (seen, rows) in zip(self.readers, self.before, strict=True):
            reader.seen, reader.rows_read = seen, rows


def same(mine: Scores, theirs: Scores) -> bool:
    """Equal ids, and logits equal up to rounding."""
    ids = mine.ids is theirs.ids is None or torch.equal(mine.ids, theirs.ids)
    return ids and torch.allclose(mine.logits, theirs.logits, rtol=1e-9, atol=1e-9)


def moved(models: Models, where: str) -> Models:
    """A copy on a device."""
    return Models(*(copy.deepcopy(model).to(where) for model in (models.target, models.draft)))


def stages_of(name: str, sampling: Sampling, where: str = "cpu") -> list[Stage]:
    models = duo(0) if where == "cpu" else moved(duo(0), where)
    return build(method_named(name, {"k": 3}), models, sampling, 64)


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fixed shapes everywhere: recorded on CUDA, called as they are on the CPU."""
    monkeypatch.setenv(graphs.FLAG, "auto" if torch.cuda.is_available() else "eager")
    monkeypatch.setattr(graphs, "KEYS", 24)
    monkeypatch.setattr(cascade, "Cascade", Shadowed)
    Shadowed.bursts = Shadowed.checks = 0
    yield


def tokens_of(stages: list[Stage], finalize: str = "deferred") -> list[int]:
    return [token for step in cascade.decode(stages, PROMPT, Limits(24, (), finalize)) for token in step.tokens]


@devices
@named
@sampled
def test_static_buffers_draft_and_judge_as_the_loop_does(name: str, sampling: Sampling, where: str) -> None:
    stages = stages_of(name, sampling, where)
    assert records_burst(stages[0]) and all(map(records_check, stages[1:]))
    for finalize in ("deferred", "eager"):
        assert len(tokens_of(stages, finalize)) == 24
    assert Shadowed.bursts > 24 and Shadowed.checks > 8


def test_a_scripted_rule_is_judged_by_its_script() -> None:
    stages = scripted(stages_of("dense", Sampling()), (0.9, 0.5, 0.5))
    assert records_check(stages[1]) and len(tokens_of(stages)) == 24 and Shadowed.checks > 5


def test_clusters_that_are_sampled_are_the_same_ones() -> None:
    stages = build(method_named("flash", {"selection": "sample", "k": 3}), duo(0), SAMPLINGS["coupling"], 64)
    assert len(tokens_of(stages)) == 24 and Shadowed.bursts > 24


def test_the_control_a_step_at_the_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = CapturedBurst._step
    monkeypatch.setattr(CapturedBurst, "_step", lambda self, shape: honest(self, (shape[0], 1, 8)))
    with pytest.raises(AssertionError):
        tokens_of(stages_of("dense", SAMPLINGS["coupling"]))


def test_the_control_another_seed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "DeviceDice", lambda seed: DeviceDice(seed + 1))
    with pytest.raises(AssertionError):
        tokens_of(stages_of("dense", SAMPLINGS["coupling"]))


@sampled
def test_a_burst_never_waits_and_a_verification_waits_once(sampling: Sampling) -> None:
    stages, watch = stages_of("dense", sampling), Watch()
    tokens = torch.tensor(PROMPT + [0] * 20)
    with watch:
        watch.part = "draft"
        drawn = captured_burst(stages[0]).write(tokens, len(PROMPT), 3)
        watch.part = "check"
        captured_check(stages[1], 1).judge(tokens[: len(PROMPT) + 3], len(PROMPT), [d.scores for d in drawn], [])
    assert watch.waits["draft"] == 0 and watch.waits["check"] == 1


def test_what_is_recorded_is_kept_for_the_next_decode_of_the_same_stages() -> None:
    stages = stages_of("dense", Sampling())
    burst, check = captured_burst(stages[0]), captured_check(stages[1], 1)
    tokens_of(stages)
    assert burst_of(stages[0]) is burst and judge_of(stages[1], 1) is check
    assert captured_burst(stages_of("dense", Sampling())[0]) is not burst


def test_stages_that_cannot_be_recorded_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = build(method_named("hispec_adaptive", {}), duo(0), Sampling(), 64)
    assert not records_burst(doubtful[0]) and records_check(doubtful[1])
    assert not records_burst(build(method_named("lookup", {}), duo(0), Sampling(), 64)[0])
    typical = stages_of("dense", Sampling(1.0, rule="typical"))
    assert records_burst(typical[0]) and not records_check(typical[1])
    monkeypatch.setenv(graphs.FLAG, "0")
    plain = stages_of("dense", Sampling())
    assert not records_burst(plain[0]) and not records_check(plain[1])
    assert not isinstance(burst_of(plain[0]), CapturedBurst) and isinstance(judge_of(plain[1], 1), InTurn)


@sampled
def test_nan_is_refused(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, tokens = stages_of("dense", sampling), torch.tensor([*PROMPT, 1, 2])
    monkeypatch.setattr(SpanReader, "rows", property(lambda self: torch.full_like(self._rows, torch.nan)))
    q = [Scores(None, torch.zeros(1, 61, dtype=torch.float64))] * 2
    with pytest.raises(FloatingPointError, match="a model gave NaN logits"):
        captured_check(stages[1], 1).judge(tokens, len(PROMPT), q, [])


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, -1])
def test_the_devices_dice_are_the_hosts(seed: int) -> None:
    places, scores = torch.tensor([0, 1, 7, 100, 40_000, 2**40]), Scores(None, torch.zeros(6, 61))
    for use in ("draw", "accept", "residual"):
        assert torch.equal(Dice(seed).uniform(places, 3, use), DeviceDice(seed).uniform(places, 3, use))
    assert torch.equal(Dice(seed).gumbel(scores, places, 61), DeviceDice(seed).gumbel(scores, places, 61))
    assert not torch.equal(Dice(seed).uniform(places, 3, "draw"), DeviceDice(seed + 1).uniform(places, 3, "draw"))


def test_a_rule_that_judges_on_the_host_alone_is_refused() -> None:
    ask = Ask(torch.tensor([1]), [], torch.tensor([4, 5]), 1)
    with pytest.raises(ValueError, match="rule 'typical' judges on the host"):
        settled(Sampling(1.0, rule="typical"), Scores(None, torch.zeros(2, 61)), ask)

"""Events are whole numbers that account for everything."""

from __future__ import annotations

import pytest
import torch
from toys import PROMPT, duo, run

from flashspec.decoding import cascade
from flashspec.decoding.generate import Request, count, request
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import Models
from flashspec.sampling import Sampling

STACKS = {
    "dense": Method(draft="model"),
    "flash": Method(draft="model", head="flash", k=3),
    "self_speculation": METHODS["self_speculation"],
    "hispec": METHODS["hispec"],
    "two models, three stages": Method(draft="model", exits=(3,), k=2, interval=5),
}
both = pytest.mark.parametrize("finalize", ["eager", "deferred"])
stacks = pytest.mark.parametrize("name", STACKS)


def prepare(name: str, finalize: str, **options) -> Request:
    options = {"max_new_tokens": 21, "stop": (), "finalize": finalize} | options
    return request(duo(), PROMPT, STACKS[name], Sampling(0.7, seed=5), options)


def play(ready: Request):
    """Tokens and events of a request."""
    steps = list(ready.steps())
    return [t for s in steps for t in s.tokens], [e for s in steps for e in s.events]


def watched(reader, calls: list[int]):
    """Note how many rows each forward of this reader computes."""
    run_engine = reader.engine.run
    reader.engine.run = lambda x, start: (calls.append(len(x)), run_engine(x, start))[1]


@stacks
def test_eager_and_deferred_print_the_same_text(name):
    assert play(prepare(name, "eager"))[0] == play(prepare(name, "deferred"))[0]


@both
@stacks
def test_target_forwards_a_round_are_two_and_one(name, finalize):
    ready, calls = prepare(name, finalize), []
    watched(ready.stages[-1].reader, calls)
    tokens, events = play(ready)
    stats = count(events, len(tokens), len(ready.stages))
    idle = events[-1].rows == 0
    assert len(calls) == stats.forwards == (2 * stats.rounds - 1 - idle if finalize == "eager" else stats.rounds)
    assert not idle or (finalize == "eager" and events[-1].waiting == 0), "only a last round without drafts has nothing to read"


def test_the_control_finalising_after_the_last_round_is_caught(monkeypatch):
    def always(state, finalize=cascade.finalize):
        whole, state.tokens = state.tokens, torch.cat((state.tokens, state.tokens[:1]))
        found, state.tokens = finalize(state), whole
        return found

    monkeypatch.setattr(cascade, "finalize", always)
    ready, calls = prepare("dense", "eager"), []
    watched(ready.stages[-1].reader, calls)
    tokens, events = play(ready)
    assert len(calls) == 2 * count(events, len(tokens), 2).rounds


@both
def test_a_verification_reads_k_rows_eagerly_and_one_more_deferred(finalize):
    checks = [e for e in play(prepare("dense", finalize))[1] if e.stage == 1 and e.adds]
    extra = 0 if finalize == "eager" else 1
    assert [e.rows - e.waiting for e in checks] == [len(PROMPT)] + [extra] * (len(checks) - 1)


@both
@stacks
def test_events_account_for_every_row_and_token(name, finalize):
    ready = prepare(name, finalize)
    calls = [list[int]() for _ in ready.stages]
    for stage, rows in zip(ready.stages, calls, strict=True):
        watched(stage.reader, rows)
    tokens, events = play(ready)
    assert [sum(e.rows for e in events if e.stage == i) for i in range(len(calls))] == [sum(rows) for rows in calls]
    assert len(tokens) == sum(e.adds - (e.waiting - e.kept) for e in events)
    stats = count(events, len(tokens), len(ready.stages))
    assert stats.accepted + stats.rounds == stats.emitted == len(tokens) == 21
    assert stats.tar == pytest.approx(len(tokens) / stats.rounds)
    assert stats.acceptance == pytest.approx(stats.accepted / stats.judged)
    assert stats.judged >= stats.accepted
    if len(ready.stages) == 2:
        assert stats.drafted == stats.judged


@stacks
def test_no_layer_is_computed_twice_for_a_kept_token(name):
    ready = prepare(name, "deferred")
    tokens, events = play(ready)
    kept = len(PROMPT) + len(tokens) - 1
    dropped = [sum(e.waiting - e.kept for e in events if e.stage == i) for i in range(len(ready.stages))]
    rows = [sum(e.rows for e in events if e.stage == i) for i in range(len(ready.stages))]
    assert max(rows) <= kept + sum(dropped) and rows[-1] == kept + dropped[-1]


def test_plain_decoding_counts_a_forward_a_token_and_drafts_nothing():
    stats = run(duo(), "baseline", 0.7).stats
    assert (stats.rounds, stats.forwards, stats.emitted) == (24, 24, 24)
    assert (stats.drafted, stats.judged, stats.accepted, stats.acceptance, stats.tar) == (0, 0, 0, 0.0, 1.0)


def test_a_cut_text_counts_what_lay_behind_as_accepted_but_not_emitted():
    whole = run(duo(), "hispec", 0.7, k=3)
    stop = whole.tokens[9]
    out = run(duo(), "hispec", 0.7, k=3, stop=(stop,))
    assert out.stats.emitted == len(out.tokens) == whole.tokens.index(stop) + 1
    assert out.stats.accepted + out.stats.rounds >= out.stats.emitted
    assert out.events == whole.events[: len(out.events)]


@pytest.mark.parametrize("k", [1, 3, 4])
@both
def test_a_model_that_drafts_for_itself_is_always_right(k, finalize):
    twin = Models(duo().target, duo().target)
    out = run(twin, "dense", 1.5, k=k, finalize=finalize)
    assert out.stats.accepted == out.stats.judged
    assert out.stats.rounds == -(-24 // (k + 1))


def test_the_control_an_imitation_is_not_always_right():
    stats = run(duo(), "dense", 1.5).stats
    assert 0 < stats.accepted < stats.judged

"""Events account for everything: rows, forwards and tokens, every row computed once, and one wait a verification."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from toys import PROMPT, TEMPERATURES, duo, run

from flashspec import METHODS, Method, Sampling
from flashspec.decoding import cascade, rules
from flashspec.decoding.generate import count, request
from flashspec.models.reader import SpanReader
from flashspec.sampling import Dice

STACKS = {
    "dense": Method(draft="model"),
    "flash": Method(draft="model", head="flash", k=3),
    "self_speculation": METHODS["self_speculation"],
    "hispec": METHODS["hispec"],
    "two models, three stages": Method(draft="model", exits=(3,), k=2, interval=5),
}


def prepare(method, temperature=0.7, new=21, **options):
    options = {"max_new_tokens": new, "stop": (), **options}
    return request(duo(), PROMPT, method, Sampling(temperature, seed=5), options)


def play(ready):
    steps = list(ready.steps())
    return [t for s in steps for t in s.tokens], [e for s in steps for e in s.events]


def forwards(reader):
    run_engine, calls = reader.engine.run, []
    reader.engine.run = lambda x, start: (calls.append(len(x)), run_engine(x, start))[1]
    return calls


@pytest.mark.parametrize("finalize", ["eager", "deferred"])
@pytest.mark.parametrize("name", STACKS)
def test_target_forwards_a_round_are_two_eagerly_and_one_deferred(name, finalize):
    ready = prepare(STACKS[name], finalize=finalize)
    calls = [forwards(stage.reader) for stage in ready.stages]
    tokens, events = play(ready)
    stats, idle = count(events, len(tokens), len(ready.stages)), events[-1].rows == 0
    assert len(calls[-1]) == stats.forwards == (2 * stats.rounds - 1 - idle if finalize == "eager" else stats.rounds)
    assert not idle or (finalize == "eager" and events[-1].waiting == 0), "only a last round without drafts has nothing to read"
    assert [sum(e.rows for e in events if e.stage == i) for i in range(len(calls))] == [sum(rows) for rows in calls]
    assert len(tokens) == sum(e.adds - (e.waiting - e.kept) for e in events)
    assert stats.accepted + stats.rounds == stats.emitted == len(tokens) == 21
    assert stats.tar == pytest.approx(len(tokens) / stats.rounds)
    assert stats.judged >= stats.accepted
    assert len(ready.stages) > 2 or stats.drafted == stats.judged


def test_the_control_finalising_after_the_last_round_is_caught(monkeypatch):
    def always(state, finalize=cascade.finalize):
        whole, state.tokens = state.tokens, torch.cat((state.tokens, state.tokens[:1]))
        found, state.tokens = finalize(state), whole
        return found

    monkeypatch.setattr(cascade, "finalize", always)
    ready = prepare(STACKS["dense"], finalize="eager")
    calls = forwards(ready.stages[-1].reader)
    tokens, events = play(ready)
    assert len(calls) == 2 * count(events, len(tokens), 2).rounds


def test_a_cut_text_counts_what_lay_behind_as_accepted_but_not_emitted():
    plain, whole = run(duo(), "baseline", 0.7).stats, run(duo(), "hispec", 0.7, k=3)
    assert (plain.rounds, plain.forwards, plain.emitted, plain.tar, plain.drafted) == (24, 24, 24, 1.0, 0)
    outs = {stop: run(duo(), "hispec", 0.7, k=3, stop=(stop,)) for stop in set(whole.tokens)}
    for stop, out in outs.items():
        assert out.stats.emitted == len(out.tokens) == whole.tokens.index(stop) + 1
        assert out.events == whole.events[: len(out.events)]
    assert {out.stats.accepted + out.stats.rounds > out.stats.emitted for out in outs.values()} == {True, False}


@st.composite
def hierarchies(draw):
    exits = tuple(sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3))))
    threshold = st.none() | st.floats(0, 1)
    return Method(
        exits=exits, k=draw(st.integers(1, 5)), interval=draw(st.integers(1, 8)), head=draw(st.sampled_from(["dense", "flash"])),
        draft_doubt=draw(threshold), verify_doubt=draw(threshold),
    )  # fmt: skip


def is_closed_form(method, temperature=0.7, new=21):
    """Whether the rows that each stage computes are those of the text and of the tokens dropped above it, each once."""
    ready = prepare(method, temperature=temperature, new=new)
    (tokens, events), stages = play(ready), ready.stages
    dropped = [sum(e.waiting - e.kept for e in events if e.stage == i) for i in range(1, len(stages))]
    sums = [len(PROMPT) + len(tokens) - 1 + sum(dropped[level:]) for level in range(len(dropped))]
    wanted = [sums[0], *sums]  # the first level checks all drafts, so it computes the writer's rows
    return [sum(e.rows for e in events if e.stage == i) for i in range(len(stages))] == wanted


@settings(max_examples=25)
@given(hierarchies(), st.sampled_from(TEMPERATURES), st.integers(1, 21))
def test_rows_computed_are_the_closed_form_to_the_row(method, temperature, new):
    assert is_closed_form(method, temperature, new)


def test_the_control_rows_computed_again_after_a_rewind_too_far_are_caught(monkeypatch):
    assert is_closed_form(METHODS["hispec"])
    monkeypatch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, max(0, n - 1))))
    assert not is_closed_form(METHODS["hispec"])


WAITS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
MADE_ON_THE_HOST = {"tensor", "arange"}


class Watch(TorchFunctionMode):
    """Counts conversions that would wait for the device, by part of the loop; numbers the host made itself are free."""

    def __init__(self):
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

    def inside(self, part, action):
        """An action whose waits count for this part."""

        def named(*args):
            self.part = part
            try:
                return action(*args)
            finally:
                self.part = ""

        return named


def waits(monkeypatch, name, rule, k=4):
    """Waits while drafting, waits while checking, and verifications, of one decode."""
    watch = Watch()
    for part in ("draft", "check"):
        monkeypatch.setattr(cascade, part, watch.inside(part, getattr(cascade, part)))
    sampling = Sampling(1.0, top_k=20, top_p=0.9, rule=rule)
    Dice(sampling.seed).key(torch.arange(1), "gumbel")  # mixes the seed, once in a process
    ready = request(duo(0, torch.float32), PROMPT, name, sampling, {"max_new_tokens": 13, "stop": (), "k": k})
    with watch:
        events = [event for step in ready.steps() for event in step.events]
    return watch.waits["draft"], watch.waits["check"], sum(e.adds for e in events if e.stage)


@pytest.mark.parametrize("rule", ["coupling", "speculative"])
@pytest.mark.parametrize(("name", "k"), [("dense", 1), ("dense", 4), ("dense", 6), ("flash", 4), ("hispec_flash", 4)])
def test_a_burst_of_drafts_never_waits_and_a_verification_once(name, k, rule, monkeypatch):
    drafting, checking, checks = waits(monkeypatch, name, rule, k)
    assert (drafting, checking) == (0, checks)


@pytest.mark.parametrize("verb", ["draw", "verify"])
def test_the_control_a_draft_that_looks_at_its_token_is_caught(verb, monkeypatch):
    honest = getattr(rules.GumbelCoupling, verb)

    def looking(self, *given):
        found = honest(self, *given)
        assert int(found.token) >= 0
        return found

    monkeypatch.setattr(rules.GumbelCoupling, verb, looking)
    drafting, checking, checks = waits(monkeypatch, "dense", "coupling")
    assert (drafting >= 4) == (verb == "draw") and checking == (2 if verb == "verify" else 1) * checks

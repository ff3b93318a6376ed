"""Events account for everything: rows, forwards and tokens, layers run once for a kept token, and one wait a verification."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from toys import PROMPT, TEMPERATURES, duo, headed, random_model, run

from flashspec import METHODS, Method, Models, Sampling, kernels
from flashspec.decoding import cascade, rules
from flashspec.decoding.generate import count, request
from flashspec.models.reader import SpanReader

STACKS = {
    "dense": Method(draft="model"),
    "flash": Method(draft="model", head="flash", k=3),
    "self_speculation": METHODS["self_speculation"],
    "hispec": METHODS["hispec"],
    "two models, three stages": Method(draft="model", exits=(3,), k=2, interval=5),
}
both = pytest.mark.parametrize("finalize", ["eager", "deferred"])
stacks = pytest.mark.parametrize("name", STACKS)


def prepare(method, models=None, temperature=0.7, new=21, **options):
    options = {"max_new_tokens": new, "stop": (), **options}
    return request(models or duo(), PROMPT, method, Sampling(temperature, seed=5), options)


def play(ready):
    steps = list(ready.steps())
    return [t for s in steps for t in s.tokens], [e for s in steps for e in s.events]


def forwards(reader):
    run_engine, calls = reader.engine.run, []
    reader.engine.run = lambda x, start: (calls.append(len(x)), run_engine(x, start))[1]
    return calls


@both
@stacks
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
    assert stats.acceptance == pytest.approx(stats.accepted / stats.judged) and stats.judged >= stats.accepted
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


@both
def test_a_verification_reads_k_rows_eagerly_and_one_more_deferred(finalize):
    checks = [e for e in play(prepare(STACKS["dense"], finalize=finalize))[1] if e.stage == 1 and e.adds]
    extra = 0 if finalize == "eager" else 1
    assert [e.rows - e.waiting for e in checks] == [len(PROMPT)] + [extra] * (len(checks) - 1)
    stats = run(duo(), "baseline", 0.7).stats
    assert (stats.rounds, stats.forwards, stats.emitted, stats.acceptance, stats.tar) == (24, 24, 24, 0.0, 1.0)
    assert (stats.drafted, stats.judged, stats.accepted) == (0, 0, 0)


def test_a_cut_text_counts_what_lay_behind_as_accepted_but_not_emitted():
    whole = run(duo(), "hispec", 0.7, k=3)
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


@settings(max_examples=25)
@given(hierarchies(), st.sampled_from(TEMPERATURES), st.integers(1, 21))
def test_rows_computed_are_the_closed_form_to_the_row(method, temperature, new):
    ready = prepare(method, temperature=temperature, new=new)
    (tokens, events), stages = play(ready), ready.stages
    dropped = [sum(e.waiting - e.kept for e in events if e.stage == i) for i in range(1, len(stages))]
    sums = [len(PROMPT) + len(tokens) - 1 + sum(dropped[level:]) for level in range(len(dropped))]
    wanted = [sums[0], *sums]  # the first level checks all drafts, so it computes the writer's rows
    assert [sum(e.rows for e in events if e.stage == i) for i in range(len(stages))] == wanted


def counted(method, dtype, monkeypatch):
    """Runs of layers in a decode, by layer and all the text up to a token, and the lengths of bursts that kernels wrote.

    Those of every token that was dropped are taken away, once for each layer at or below the stage that dropped it.
    Counted where layers are run: in the engine of each reader, and in the kernels that write a whole burst.
    """
    model, runs, bursts = random_model(0, vocab_size=64).to(dtype), Counter(), []
    ready = prepare(method, headed(Models(model)))
    for stage in ready.stages:
        watch_layers(stage.reader, runs)
    write, check = kernels.Writer.__call__, cascade.check

    def written(self, place, law):
        found = write(self, place, law)
        note(runs, range(self.span.depth), place.tokens.tolist(), range(place.seen, place.start + place.want - 1))
        bursts.append(place.want)
        return found

    def checked(state, i):
        first, waiting = state.marks[i], state.tokens[: state.length].tolist()
        found = check(state, i)
        dropped = range(first + found[-1].kept, len(waiting))
        runs.subtract((layer, tuple(waiting[: p + 1])) for layer in range(state.stages[i].reader.stop) for p in dropped)
        return found

    monkeypatch.setattr(kernels.Writer, "__call__", written)
    monkeypatch.setattr(cascade, "check", checked)
    return runs, bursts, *play(ready)


def note(counts, layers, tokens, positions):
    counts.update((layer, tuple(tokens[: position + 1])) for layer in layers for position in positions)


def watch_layers(reader, counts):
    run_engine, read, asked = reader.engine.run, reader.read, []

    def reading(tokens):
        asked[:] = tokens.tolist()
        return read(tokens)

    def running(x, start):
        note(counts, range(reader.start, reader.stop), asked, range(start, start + len(x)))
        return run_engine(x, start)

    reader.engine.run, reader.read = running, reading


HISPEC = METHODS["hispec"]
REUSING = [HISPEC, Method(exits=(1, 3), k=3, interval=5, head="flash"), Method(exits=(3, 5), k=1, interval=8), Method(exits=(2,))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "kernels"])
@pytest.mark.parametrize("method", REUSING, ids=str)
def test_every_layer_runs_once_for_a_kept_token(method, dtype, monkeypatch):
    runs, bursts, tokens, events = counted(method, dtype, monkeypatch)
    whole = [*PROMPT, *tokens]
    once = {(layer, tuple(whole[:end])): 1 for layer in range(6) for end in range(1, len(whole))}
    assert {key: count for key, count in runs.items() if count} == once and any(e.kept < e.waiting for e in events)
    assert bool(bursts) == (dtype == torch.float32), "this test needs a C compiler"


def test_the_control_layers_run_again_where_readers_rewind_too_far(monkeypatch):
    monkeypatch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, max(0, n - 1))))
    assert max(counted(HISPEC, torch.float64, monkeypatch)[0].values()) > 1


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

"""Where decoding ends, what a stream and a state are, when a stage asks the next one early, and what is refused."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shelf import refused, refusing
from toys import PROMPT, duo, random_model, run, text

from flashspec import Limits, Models, Sampling, Scores
from flashspec.decoding import stages as staging
from flashspec.decoding.cascade import decode
from flashspec.decoding.generate import agreement, generate, request, weak_exit
from flashspec.decoding.lookup import NOTHING, LookupHead, continuation, nothing_to_say
from flashspec.decoding.method import Method
from flashspec.decoding.stages import unsure
from flashspec.models.reader import SpanReader

HOT = Sampling(1.5, seed=7)


def prepare(name, prompt=tuple(PROMPT), **options):
    return request(duo(), list(prompt), name, HOT, {"max_new_tokens": 20, "stop": ()} | options)


@pytest.mark.parametrize("name", ["baseline", "dense", "flash", "self_speculation", "hispec"])
def test_a_stream_is_the_output_in_pieces_may_be_closed_at_any_of_them_and_does_not_go_on_after_another_began(name):
    ready = prepare(name)
    steps = list(ready.steps())
    assert all(step.tokens and step.events for step in steps) and (name == "baseline" or len(steps) < 20)
    assert [t for step in steps for t in step.tokens] == generate(duo(), PROMPT, name, HOT, max_new_tokens=20, stop=()).tokens
    for count in (0, 1, 3):
        stream = ready.steps()
        for _ in range(count):
            next(stream)
        stream.close()
        assert list(ready.steps()) == steps
    first, second = ready.steps(), ready.steps()
    assert [next(first), next(second)] == [steps[0]] * 2
    refused("another decode has begun over these stages", next, first, error=RuntimeError)
    assert list(second) == steps[1:] and list(ready.steps()) == steps


ADAPTIVE = {
    "confidence": Method(exits=(2, 4), k=5, interval=6, draft_doubt=0.5, verify_doubt=0.5),
    "draft model": Method(draft="model", k=6, draft_doubt=0.6),
    "flash": Method(draft="model", head="flash", k=6, draft_doubt=0.7),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_doubts_shorten_bursts_and_one_cut_after_the_fact_is_the_one_that_stopped(name, monkeypatch):
    scores = Scores(None, torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]))
    assert unsure(0.5)(scores).tolist() == [True, False] and not unsure(0.2)(scores).any() and unsure(None) is None
    stopped, calm = (run(duo(), m, 0.7) for m in (ADAPTIVE[name], replace(ADAPTIVE[name], draft_doubt=None, verify_doubt=None)))
    bursts, longer = ([e.adds for e in out.events if e.stage == 0] for out in (stopped, calm))
    assert sum(bursts) / len(bursts) < sum(longer) / len(longer)
    monkeypatch.setattr(staging, "stops", lambda doubt, doubts: doubts.append(doubt))
    cut = run(duo(), ADAPTIVE[name], 0.7)
    assert cut.tokens == stopped.tokens
    assert [e[:3] + (e.adds,) for e in cut.events if e.adds] == [e[:3] + (e.adds,) for e in stopped.events if e.adds]


def test_a_doubting_verifier_asks_before_its_interval():
    waiting = [e.waiting for e in run(duo(), ADAPTIVE["confidence"], 0.7).events if e.stage == 2 and e.adds]
    calm = [e.waiting for e in run(duo(), replace(ADAPTIVE["confidence"], verify_doubt=None), 0.7).events if e.stage == 2]
    assert min(waiting) < 6 <= max(calm)


def searched(tokens, longest, shortest):
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end]
    return NOTHING


@settings(max_examples=300)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(1, 4), st.data())
def test_lookup_equals_a_search(tokens, longest, data):
    shortest = data.draw(st.integers(1, longest))
    assert int(continuation(torch.tensor(tokens), longest, shortest)) == searched(tokens, longest, shortest)


def test_a_looping_text_is_drafted_by_lookup_which_says_nothing_without_a_match():
    scores = LookupHead(61)(torch.tensor([NOTHING, 7]))
    assert nothing_to_say(scores).tolist() == [True, False] and scores.row(1).dense(61)[0, 7] == 1
    out = run(duo(), "lookup", prompt=[3, 1, 4, 1, 5] * 6, max_new_tokens=40)
    assert out.tokens == text(duo(), "baseline", prompt=[3, 1, 4, 1, 5] * 6, max_new_tokens=40)
    assert out.stats.accepted > 0 and out.stats.drafted == out.stats.judged
    assert any(e.stage == 0 and e.adds == 0 for e in out.events), "a round without a match drafts nothing"


def called(**options):
    return lambda: generate(duo(), options.pop("prompt", PROMPT), options.pop("method", "dense"), **options)


def mixed(*stages):
    return lambda: next(decode(list(stages), PROMPT))


PLAIN, OTHER = prepare("baseline").stages[0], random_model(3, vocab_size=64)
test_nonsense_is_refused_in_words = refusing([
    (called(prompt=[]), "prompt is empty"),
    (called(prompt=[1] * 128), "shorten it to 127"),
    (called(prompt=[1, 61]), "between 0 and 60"),
    (called(prompt="text"), "without a tokenizer"),
    (called(method="fast"), "method must be one of baseline"),
    (called(kk=3), "'kk' is no option of a method"),
    (called(max_new_tokens=0), "max_new_tokens must be at least 1"),
    (called(exits=(2, 6)), "exits must lie below the target's 6 layers"),
    (called(method="flash", probes=17), "probes must be at most the 16 clusters"),
    (lambda: generate(Models(duo().target), PROMPT, "dense"), "none is loaded"),
    (lambda: Method(exits=(4, 2)), r"exits must be layer numbers from 1, in rising order, got \(4, 2\)"),
    (lambda: Method(k=0), "k must be at least 1, got 0"),
    (lambda: Method(head="flash"), "needs a verifier above it"),
    (lambda: Method(draft="lookup", head="flash"), "prompt lookup has no vocabulary head"),
    (lambda: Method(middle="sloppy"), "middle must be one of exact, typical"),
    (lambda: Method(finalize="later"), "finalize must be one of eager, deferred"),
    (lambda: Method(exits=(2,), draft_doubt=1.5), "a probability in"),
    (lambda: Limits(finalize="never"), "finalize must be one of eager, deferred, got 'never'"),
    (lambda: Models(duo().target, OTHER), r"different vocabularies \(64 and 61 ids\)"),
    (lambda: SpanReader(duo(0, torch.float32).target, 9), "a span must end between layer 1 and 6, got 9"),
    (lambda: SpanReader(duo().target, context=16).read(torch.arange(40)), "40 tokens do not fit the context of 16"),
    (mixed(), "at least one stage"),
    (mixed(PLAIN._replace(every=0)), "at least 1 waiting token"),
    (mixed(request(Models(OTHER), PROMPT, "baseline", HOT, {}).stages[0], PLAIN), "share one tokenizer"),
])  # fmt: skip


def test_a_draft_on_another_device_is_refused():
    refused("the draft is on meta and its target on cpu", Models, duo().target, copy.deepcopy(duo().draft).to("meta"))


def spoiled(which):
    models = Models(copy.deepcopy(duo().target), copy.deepcopy(duo().draft))
    getattr(models, which).layers[1].mlp.down.weight[0, 0] = torch.nan
    return models


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["coupling", "speculative"])
def test_nan_logits_are_refused_in_words(rule, temperature):
    for which, name in (("target", "baseline"), ("target", "dense"), ("draft", "dense"), ("target", "hispec")):
        refused("NaN logits; check the checkpoint", run, spoiled(which), name, temperature, rule, error=FloatingPointError)
    assert text(spoiled("draft"), "baseline", 1.0) == text(duo(), "baseline", 1.0)


def stranger():
    model = random_model(3)
    for layer in model.layers[3:]:
        layer.mlp.down.weight.mul_(60.0)
    return Models(model)


def test_a_model_without_usable_exits_is_decoded_with_a_warning():
    with pytest.warns(UserWarning, match=r"exit 2 agreed with the layers above it on \d+ of \d+ tokens .*flashspec train exits"):
        out = run(stranger(), "self_speculation")
    assert out.tokens == text(stranger(), "baseline")
    kept, decided = agreement(out.events, 1)
    assert f"{kept} of {decided} tokens" in weak_exit(Method(exits=(2,)), out.events)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(duo(), "self_speculation")

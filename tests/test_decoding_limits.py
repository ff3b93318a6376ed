"""Where decoding ends, what a stream is, and what is refused."""

from __future__ import annotations

from itertools import chain, repeat

import pytest
import torch
from toys import PROMPT, config, duo, random_model, run, text

from flashspec.decoding.cascade import decode
from flashspec.decoding.generate import generate, request
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits, State
from flashspec.sampling import Sampling

STACKS = ["baseline", "dense", "flash", "self_speculation", "hispec"]
each = pytest.mark.parametrize("name", STACKS)
HOT = Sampling(1.5, seed=7)


def prepare(name: str, prompt=tuple(PROMPT), **options):
    return request(duo(), list(prompt), name, HOT, {"max_new_tokens": 20, "stop": ()} | options)


@each
def test_text_is_cut_at_the_first_final_stop_token(name):
    whole, options = text(duo(), name, 1.5), {} if name == "baseline" else {"k": 4}
    for stop in {(token,) for token in whole} | {tuple(whole[5:8])}:
        first = min(whole.index(token) for token in stop)
        assert text(duo(), name, 1.5, stop=stop, **options) == whole[: first + 1]


@pytest.mark.parametrize("name", STACKS[1:])
def test_the_examples_hold_a_stop_token_accepted_in_the_middle_of_a_block(name):
    whole = text(duo(), name, 1.5)
    outs = [run(duo(), name, 1.5, stop=(token,)) for token in whole]
    assert any(out.stats.accepted + out.stats.rounds > out.stats.emitted for out in outs)


@each
def test_exactly_the_tokens_asked_for_are_emitted(name):
    whole = text(duo(), name, 1.5)
    assert [text(duo(), name, 1.5, max_new_tokens=n) for n in range(1, 12)] == [whole[:n] for n in range(1, 12)]


@each
@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_full_context_ends_the_text(name, room):
    prompt = [i % 61 for i in range(128 - room)]
    assert len(generate(duo(), prompt, name, HOT, max_new_tokens=50, stop=()).tokens) == room


@each
def test_a_stream_is_the_output_in_pieces(name):
    steps = list(prepare(name).steps())
    assert all(step.tokens and step.events for step in steps)
    assert [t for step in steps for t in step.tokens] == generate(duo(), PROMPT, name, HOT, max_new_tokens=20, stop=()).tokens
    assert name == "baseline" or len(steps) < 20


@each
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_generator_closed_early_leaves_its_stages_ready(name, steps):
    ready = prepare(name)
    stream = ready.steps()
    for _ in range(steps):
        next(stream)
    stream.close()
    assert [t for step in ready.steps() for t in step.tokens] == [t for step in prepare(name).steps() for t in step.tokens]


@each
def test_going_on_after_another_decode_began_over_the_same_stages_is_refused(name):
    ready, expected = prepare(name), [step.tokens for step in prepare(name).steps()]
    first, second = ready.steps(), ready.steps()
    assert [next(first).tokens, next(second).tokens] == [expected[0]] * 2
    with pytest.raises(RuntimeError, match="another decode has begun over these stages"):
        next(first)
    assert [step.tokens for step in second] == expected[1:]
    assert [step.tokens for step in ready.steps()] == expected


def test_the_control_two_decodes_in_turns_over_the_same_stages_spoil_each_other(monkeypatch):
    monkeypatch.setattr(State, "check_ours", lambda self: None)
    other, ready = prepare("dense", [2, 7, 1, 8, 2, 8]), prepare("dense")
    first, second = ready.steps(), decode(ready.stages, other.ids, other.limits)
    texts = [[step.tokens for step in steps] for steps in zip(*zip(first, second, strict=False), strict=True)]
    assert texts[0] != [step.tokens for step in prepare("dense").steps()][: len(texts[0])]


@each
def test_a_prompt_of_one_token_is_enough(name):
    assert text(duo(), name, 0.7, prompt=[11]) == text(duo(), "baseline", 0.7, prompt=[11])


@each
def test_decodes_on_the_same_models_do_not_disturb_each_other(name):
    first = text(duo(), name, 0.7)
    text(duo(), "hispec_flash", 1.5, prompt=[9, 9, 9])
    assert text(duo(), name, 0.7) == first


def test_two_generators_may_run_in_turns():
    ready, other = prepare("dense"), prepare("dense", (8, 8))
    alone = [step.tokens for step in prepare("dense").steps()]
    assert [mine.tokens for mine, _ in zip(ready.steps(), chain(other.steps(), repeat(None)), strict=False)] == alone


def refused(message: str, **options):
    """A call of generate that must be refused in these words."""
    with pytest.raises(ValueError, match=message):
        generate(duo(), options.pop("prompt", PROMPT), options.pop("method", "dense"), **options)


def test_bad_calls_are_refused_in_words():
    refused("prompt is empty", prompt=[])
    refused("shorten it to 127", prompt=[1] * 128)
    refused("between 0 and 60", prompt=[1, 61])
    refused("between 0 and 60", prompt=[-1])
    refused("method 'fast' is unknown; known: baseline", method="fast")
    refused("'kk' is no option of a method", kk=3)
    refused("k and interval must be at least 1", k=0)
    refused("finalize must be one of eager, deferred", finalize="later")
    refused("max_new_tokens must be at least 1", max_new_tokens=0)
    refused("exits must lie below the target's 6 layers", exits=(2, 6))
    refused("exits must be layer numbers from 1, in rising order", exits=(4, 2))
    refused("probes must be at most the 16 clusters", method="flash", probes=17)
    refused("without a tokenizer", prompt="text")
    with pytest.raises(ValueError, match="needs a verifier above it"):
        Method(head="flash")


def test_models_that_do_not_belong_together_are_refused():
    other = random_model(3, vocab_size=64)
    with pytest.raises(ValueError, match="different vocabularies \\(64 and 61 ids\\)"):
        Models(duo().target, other)
    with pytest.raises(ValueError, match="none is loaded"):
        generate(Models(duo().target), PROMPT, METHODS["dense"])
    mine, theirs = prepare("baseline").stages[0], request(Models(other), PROMPT, "baseline", HOT, {}).stages[0]
    with pytest.raises(ValueError, match="share one tokenizer"):
        next(decode([theirs, mine], PROMPT))
    with pytest.raises(ValueError, match="at least one stage"):
        next(decode([], PROMPT))
    with pytest.raises(ValueError, match="at least 1 waiting token"):
        next(decode([mine._replace(every=0)], PROMPT))
    with pytest.raises(ValueError, match="'eager' or 'deferred'"):
        Limits(finalize="never")


def spoiled(which: str) -> Models:
    """The toy pair with one weight of one model turned into NaN."""
    sound = duo()
    models = Models(sound.target, sound.draft)
    copy = random_model(0).double() if which == "target" else type(sound.draft)(config(2)).double()
    copy.load_state_dict(getattr(sound, which).state_dict())
    copy.layers[1].mlp.down.weight.requires_grad_(False)[0, 0] = torch.nan
    setattr(models, which, copy)
    models.heads.update(sound.heads)
    return models


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["coupling", "speculative"])
@pytest.mark.parametrize(
    ("which", "name"), [("target", "baseline"), ("target", "dense"), ("draft", "dense"), ("target", "hispec")]
)
def test_nan_logits_are_refused_in_words(which, name, rule, temperature):
    with pytest.raises(FloatingPointError, match="NaN logits; check the checkpoint"):
        run(spoiled(which), name, temperature, rule)


def test_the_baseline_of_a_spoiled_draft_is_not_disturbed():
    assert text(spoiled("draft"), "baseline", 1.0) == text(duo(), "baseline", 1.0)


def test_a_stage_is_a_plain_value():
    ready = prepare("dense")
    again = [Stage(s.reader, s.head, s.rule, s.every) for s in ready.stages]
    assert [s.tokens for s in decode(again, PROMPT, ready.limits)] == [s.tokens for s in ready.steps()]

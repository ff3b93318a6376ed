"""Several texts at once: each is what it is alone, and the weights are read once for all of them."""

from dataclasses import replace

import pytest
import torch
from shelf import refused
from test_bursts import OPT, SHAPE
from test_identity import EXACT, WIDTHS, models
from toys import duo, run, with_biases

from flashspec import Method, Models, Sampling, generate, generate_together
from flashspec.decoding.cascade import Limits
from flashspec.decoding.generate import requests
from flashspec.decoding.generate import steps_together as steps
from flashspec.kernels import available
from flashspec.models.engine import KernelEngine
from flashspec.models.exits import ExitLayer
from flashspec.models.packed import rounded
from flashspec.models.synthetic import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:exit")  # random models have exits that are of no use
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9], [3, 2, 3]]
needs_kernels = pytest.mark.skipif(not available(), reason="no C compiler on this machine")


def told(out):
    return out.tokens, out.events, out.stats


def alike(pair, method, sampling, prompts=PROMPTS, **options):
    """Whether texts, events and counts of all prompts together are those of each alone, and how many tokens they have."""
    together = generate_together(pair, prompts, method, sampling, **options)
    alone = [generate(pair, prompt, method, sampling, **options) for prompt in prompts]
    return [*map(told, together)] == [*map(told, alone)], [len(out.tokens) for out in together]


@pytest.mark.parametrize("rule", ["coupling", "speculative"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EXACT)
def test_every_text_and_its_events_are_what_they_are_alone(name, width, temperature, rule):
    sampling = Sampling(temperature, seed=7, rule=rule)
    assert alike(models(width, True), name, sampling, max_new_tokens=13, stop=()) == (True, [13] * 4)


@pytest.mark.parametrize("head", ["in_context", "int8", "flash"])
@pytest.mark.parametrize(
    "options", [{"finalize": "eager"}, {"stop": tuple(range(0, 61, 7))}, {"max_new_tokens": 1}, {"max_new_tokens": 99}]
)
def test_heads_that_learn_final_reads_stop_tokens_and_full_contexts_are_each_texts_own(head, options):
    same, lengths = alike(
        duo(), Method("model", head, k=3), Sampling(0.7, seed=1), **{"max_new_tokens": 21, "stop": ()} | options
    )
    assert same and (len({*lengths}) > 1) == ("stop" in options)


@needs_kernels
@pytest.mark.parametrize("form", ["integers", "positions", "exit layer"])
def test_integer_weights_learned_positions_and_layers_of_exits_are_read_together(form, monkeypatch):
    model = with_biases(synthetic(OPT, torch.bfloat16)) if form == "positions" else synthetic(SHAPE, torch.float32)
    model = rounded(model, "int8") if form == "integers" else model
    exits = {1: ExitLayer.like_the_last(model).fitted(model)} if form == "exit layer" else {}
    method = Method(exits=(1,), k=2)
    assert alike(Models(model, exits=exits), method, Sampling(1.0, seed=2), max_new_tokens=12, stop=()) == (True, [12] * 4)


def passes(texts, monkeypatch):
    """How often the weights are read while so many texts are written."""
    counted, real = [], KernelEngine._carry
    with monkeypatch.context() as patch:
        patch.setattr(KernelEngine, "_carry", lambda self, *given: counted.append(len(given[0])) or real(self, *given))
        ready = requests(
            models("odd vocabulary", True), PROMPTS[:texts], "baseline", Sampling(), {"max_new_tokens": 9, "stop": ()}
        )
        assert sum(len(step.tokens) for _, step in steps(ready)) == 9 * texts
    return len(counted)


@needs_kernels
def test_all_texts_share_a_pass_and_a_row_in_another_texts_place_is_caught(monkeypatch):
    assert passes(2, monkeypatch) == passes(4, monkeypatch) == 9
    honest = KernelEngine.run_together
    monkeypatch.setattr(KernelEngine, "run_together", lambda self, others, x, numbers, positions: honest(
        self, others, x, numbers.roll(1), positions))  # fmt: skip
    assert not alike(models("odd vocabulary", True), "dense", Sampling(), max_new_tokens=13, stop=())[0]


def test_what_cannot_be_decoded_together_is_refused():
    pair = duo()
    refused("a list of one or more prompts", lambda: generate_together(pair, "one"))
    refused("a list of one or more prompts", lambda: generate_together(pair, []))
    refused("give at least one token", lambda: generate_together(pair, [[1], []]))
    ready = requests(pair, PROMPTS[:2], "dense", Sampling(), {"max_new_tokens": 9, "stop": ()})
    going = steps(ready)
    next(going)
    run(pair)  # other stages
    list(steps([replace(ready[0], limits=Limits(3))]))
    refused("another decode has begun", lambda: list(going), error=RuntimeError)

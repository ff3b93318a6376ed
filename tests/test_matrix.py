"""Every exact method at every length prints the text of whole forwards, whatever the widths and with or without kernels."""

from __future__ import annotations

import functools

import pytest
import torch
from toys import imitation, random_model, text

from flashspec.decoding.method import METHODS, build
from flashspec.decoding.models import Models
from flashspec.decoding.ways import CompiledBurst
from flashspec.heads import FlashHead
from flashspec.kernels.build import _BUILT, library
from flashspec.sampling import Dice, Sampling, Scores

pytestmark = pytest.mark.filterwarnings("ignore:exit")  # random models have exits that are of no use
CONTEXT, SEED = 24, 7
WIDTHS = {
    "compiled": {"vocab_size": 64},
    "odd vocabulary": {"vocab_size": 61},
    "odd layers": {"vocab_size": 61, "hidden": 36, "head_dim": 10, "ffn": 44},
}
EXACT = [name for name, method in METHODS.items() if method.exact(Sampling(1.0))]
SHARED = {"self_speculation", "hispec", "hispec_flash", "hispec_typical"}  # what 0.7.0 printed wrong first tokens with
PROMPTS = {"one token": [11], "context - 1": [(7 * i + i * i) % 61 for i in range(CONTEXT - 1)]}
TEMPERATURES = (0.0, 1.0)
Case = tuple[str, float, int]


@pytest.fixture(params=["kernels", "torch"])
def kernels(request, monkeypatch):
    """Whether the compiled kernels are used in this test."""
    monkeypatch.setenv("FLASHSPEC_KERNELS", "1" if request.param == "kernels" else "0")
    library.cache_clear(), _BUILT.clear()
    if request.param == "kernels" and library() is None:
        pytest.skip("no C compiler on this machine")
    yield request.param == "kernels"
    monkeypatch.undo()
    library.cache_clear(), _BUILT.clear()


@functools.cache
def models(width: str, kernels: bool) -> Models:
    """Models of two, three and six layers and FlashHeads of four ids a cluster; each setting has its own."""
    shape = {"context": CONTEXT, **WIDTHS[width]}
    target = random_model(1, **shape)
    made = Models(target, imitation(target, 2, 0, 0.1, **shape), between=(imitation(target, 3, 1, 0.05, **shape),))
    for which in ("target", "draft"):
        model = made.model(which)
        made.heads[which, "flash"] = FlashHead.build(model.head_weight, model.norm, cluster_size=4, probes=4)
    return made


@functools.cache
def naive(width: str, prompt: str, temperature: float) -> list[int]:
    """Token after token by whole forwards: no cache, no stage, no rule."""
    model, ids = models(width, False).target, list(PROMPTS[prompt])
    while len(ids) < min(CONTEXT, len(PROMPTS[prompt]) + 12):
        logits = model(torch.tensor([ids]))[0, -1:]
        if temperature:
            logits = logits + Dice(SEED).gumbel(Scores(None, logits), torch.tensor([len(ids)]), logits.shape[1])
        ids.append(int(logits.argmax()))
    return ids[len(PROMPTS[prompt]) :]


def lengths(name: str) -> range:
    """From one token to two more than any stage of the method waits for."""
    return range(1, max(METHODS[name].k, METHODS[name].interval) + 3)


def wrong(name: str, width: str, kernels: bool) -> list[Case]:
    """Prompts, temperatures and lengths at which a method prints another text than its naive twin."""
    cases = [(prompt, heat, length) for prompt in PROMPTS for heat in TEMPERATURES for length in lengths(name)]
    return [case for case in cases if printed(name, width, kernels, case) != naive(width, *case[:2])[: case[2]]]


def printed(name: str, width: str, kernels: bool, case: Case) -> list[int]:
    prompt, heat, length = case
    return text(models(width, kernels), name, heat, prompt=PROMPTS[prompt], max_new_tokens=length, seed=SEED)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EXACT)
def test_every_method_at_every_length_prints_what_whole_forwards_say(name, width, kernels):
    assert wrong(name, width, kernels) == []


def compiled(name: str, width: str, kernels: bool) -> bool:
    return isinstance(build(METHODS[name], models(width, kernels))[0].write, CompiledBurst)


def test_the_matrix_holds_compiled_bursts_and_others(kernels):
    assert [compiled("hispec", width, kernels) for width in WIDTHS] == [kernels, False, False]
    assert not compiled("hispec_adaptive", "compiled", kernels)
    assert len(naive("compiled", "one token", 1.0)) == 12 != len(naive("compiled", "context - 1", 1.0)) == 1
    assert len({tuple(naive(width, "one token", heat)) for width in WIDTHS for heat in TEMPERATURES}) == 6


def test_the_control_a_burst_of_nothing_that_moves_its_mark_is_caught_where_bursts_are_compiled(kernels, monkeypatch):
    def moving(self, tokens, start, want, honest=CompiledBurst.__call__):
        if not want:
            self.reader.advance(start - 1)
        return honest(self, tokens, start, want)

    monkeypatch.setattr(CompiledBurst, "__call__", moving)
    every = [(name, width) for name in EXACT for width in WIDTHS]
    caught = [case for case in every if wrong(*case, kernels)]
    assert caught == [case for case in every if METHODS[case[0]].exits and compiled(*case, kernels)]
    assert {name for name, _ in caught} == (SHARED if kernels else set())

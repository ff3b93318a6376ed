"""Every exact method prints the baseline's text, token for token."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TEMPERATURES, VOCAB, Credulous, duo, run, text

from flashspec import kernels
from flashspec.decoding import rules
from flashspec.decoding.generate import generate
from flashspec.decoding.method import METHODS, Method
from flashspec.sampling import Sampling

EXACT = {
    **{name: method for name, method in METHODS.items() if name != "baseline"},
    "one at a time": Method(draft="model", k=1),
    "long, eager": Method(draft="model", k=7, finalize="eager"),
    "all clusters": Method(draft="model", head="flash", probes=16),
    "drawn clusters": Method(draft="model", head="flash", selection="sample", k=3),
    "self, eager": Method(exits=(3,), k=3, finalize="eager"),
    "hispec, eager": Method(exits=(1, 3), k=2, interval=3, finalize="eager"),
    "two models, three stages": Method(draft="model", exits=(3,), k=2, interval=5),
    "four stages": Method(draft="model", head="flash", exits=(2, 4), k=1, interval=2),
}


@functools.cache
def baseline(dtype: torch.dtype, temperature: float, seed: int = 7, model: int = 0) -> list[int]:
    return text(duo(model, dtype), "baseline", temperature, seed=seed)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_print_the_baseline_text(name, temperature):
    assert text(duo(), EXACT[name], temperature) == baseline(torch.float64, temperature)


@pytest.mark.parametrize("name", ["dense", "flash", "hispec"])
def test_the_control_an_inexact_method_is_caught(name, monkeypatch):
    before = baseline(torch.float64, 0.7)
    monkeypatch.setitem(rules.KINDS, "coupling", Credulous)
    assert text(duo(), name, 0.7) != before


@pytest.mark.parametrize("name", ["dense", "flash", "self_speculation", "hispec", "two models, three stages"])
def test_the_examples_reject_early_and_late_and_accept_everything(name):
    events = [e for t in TEMPERATURES for e in run(duo(), EXACT[name], t, k=2).events if e.stage and e.waiting]
    judged = {(e.waiting, e.kept) for e in events}
    assert any(kept == 0 for _, kept in judged)
    assert any(0 < kept < waiting for waiting, kept in judged)
    assert any(0 < kept == waiting for waiting, kept in judged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["flash", "long, eager", "hispec", "hispec, eager", "four stages"])
def test_compiled_kernels_keep_the_text_bit_for_bit(name, dtype):
    assert kernels.available(), "this test needs a C compiler"
    assert all(text(duo(0, dtype), EXACT[name], t) == baseline(dtype, t) for t in TEMPERATURES)


@pytest.mark.parametrize("name", ["dense", "flash", "hispec"])
def test_without_compiled_kernels_the_text_is_the_same(name, monkeypatch):
    compiled = [baseline(torch.float32, t) for t in TEMPERATURES]
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert [text(duo(0, torch.float32), name, t) for t in TEMPERATURES] == compiled


def test_greedy_is_temperature_zero_of_every_rule():
    texts = [text(duo(), "flash", 0.0, rule=rule) for rule in ("coupling", "speculative", "typical")]
    assert texts == [baseline(torch.float64, 0.0)] * 3


def test_a_seed_is_a_text():
    texts = {tuple(baseline(torch.float64, 1.5, seed)) for seed in range(4)}
    assert len(texts) == 4
    assert text(duo(), "baseline", 1.5) == baseline(torch.float64, 1.5)


def test_only_the_lossy_rule_says_so():
    lossy = Sampling(1.0, rule="typical")
    assert not METHODS["dense"].exact(lossy)
    assert METHODS["baseline"].exact(lossy)
    assert all(m.exact(Sampling(1.0, rule="coupling")) for m in METHODS.values())
    assert [n for n, m in METHODS.items() if not m.exact(Sampling(1.0, rule="speculative"))] == ["hispec_typical"]


def cut(tokens: list[int], stop: tuple[int, ...], length: int) -> list[int]:
    """The naive twin of stopping: up to the first stop token, and never more than `length`."""
    at = next((i + 1 for i, token in enumerate(tokens) if token in stop), length)
    return tokens[: min(at, length)]


@st.composite
def methods(draw) -> Method:
    exits = tuple(sorted(draw(st.sets(st.integers(1, 5), max_size=3))))
    draft = draw(st.sampled_from(["model", "none", "lookup", "cascade"]))
    flash = draw(st.booleans()) and (draft in ("model", "cascade") or (draft == "none" and bool(exits)))
    threshold = st.none() | st.floats(0, 1)
    return Method(
        draft=draft, head="flash" if flash else "dense", k=draw(st.integers(1, 6)), exits=exits,
        interval=draw(st.integers(1, 6)), finalize=draw(st.sampled_from(["eager", "deferred"])),
        probes=draw(st.integers(1, 16)), selection=draw(st.sampled_from(["top", "sample"])), ngram=draw(st.integers(1, 4)),
        doubt=draw(st.sampled_from(["confidence", "entropy"])), draft_doubt=draw(threshold), verify_doubt=draw(threshold),
        middle=draw(st.sampled_from(["exact", "typical"])), reuse=draw(st.booleans()),
    )  # fmt: skip


limits = st.fixed_dictionaries({"max_new_tokens": st.integers(1, 24), "stop": st.sets(st.integers(0, VOCAB - 1), max_size=4)})


@settings(max_examples=40)
@given(methods(), limits, st.sampled_from(TEMPERATURES), st.integers(0, 2), st.integers(0, 1))
def test_any_exact_method_on_any_model_prints_the_baseline_text(method, limit, temperature, seed, model):
    stop = tuple(limit["stop"])
    expected = cut(baseline(torch.float64, temperature, seed, model), stop, limit["max_new_tokens"])
    options = {"seed": seed, "stop": stop, "max_new_tokens": limit["max_new_tokens"]}
    assert text(duo(model), method, temperature, **options) == expected


@pytest.mark.parametrize("top", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 10, "top_p": 0.8}])
def test_warped_texts_are_the_baseline_text_too(top):
    def printed(name: str, **warps) -> list[int]:
        return generate(duo(), [5, 6], name, Sampling(1.5, seed=3, **warps), max_new_tokens=20, stop=()).tokens

    assert printed("baseline", **top) == printed("flash", **top) == printed("hispec", **top)
    assert printed("baseline", **top) != printed("baseline")

"""Every exact method prints the text of plain decoding: at every length, on any model, with or without compiled kernels."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import PROMPT, TEMPERATURES, VOCAB, duo, headed, imitation, random_model, run, text

from flashspec import METHODS, Dice, Method, Models, Sampling, Scores, build, generate
from flashspec.decoding.ways import CompiledBurst
from flashspec.kernels.build import _BUILT, library

pytestmark = pytest.mark.filterwarnings("ignore:exit")  # random models have exits that are of no use
CONTEXT, SEED = 24, 7
WIDTHS = {
    "compiled": {"vocab_size": 64},
    "odd vocabulary": {"vocab_size": 61},
    "odd layers": {"vocab_size": 61, "hidden": 36, "head_dim": 10, "ffn": 44},
}
EXACT = [name for name, method in METHODS.items() if method.exact(Sampling(1.0))]
SHARED = {"self_speculation", "hispec", "hispec_flash", "hispec_typical"}  # what 0.7.0 printed wrong first tokens with
PROMPTS = {room: [(7 * i + i * i + 11) % 61 for i in range(CONTEXT - room)] for room in (CONTEXT - 1, 5, 1)}


@pytest.fixture(params=["kernels", "torch"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("FLASHSPEC_KERNELS", "1" if request.param == "kernels" else "0")
    library.cache_clear(), _BUILT.clear()
    if request.param == "kernels" and library() is None:
        pytest.skip("no C compiler on this machine")
    yield request.param == "kernels"
    monkeypatch.undo()
    library.cache_clear(), _BUILT.clear()


@functools.cache
def models(width, kernels):
    shape = {"context": CONTEXT, **WIDTHS[width]}
    target = random_model(1, **shape)
    between = (imitation(target, 3, 1, 0.05, **shape),)
    return headed(Models(target, imitation(target, 2, 0, 0.1, **shape), between=between))


@functools.cache
def naive(width, room, temperature):
    model, ids = models(width, False).target, list(PROMPTS[room])
    while len(ids) < min(CONTEXT, CONTEXT - room + 12):
        logits = model(torch.tensor([ids]))[0, -1:]
        if temperature:
            logits = logits + Dice(SEED).gumbel(Scores(None, logits), torch.tensor([len(ids)]), logits.shape[1])
        ids.append(int(logits.argmax()))
    return ids[CONTEXT - room :]


def wrong(name, width, kernels):
    longest, made = max(METHODS[name].k, METHODS[name].interval) + 2, models(width, kernels)

    def printed(room, heat, length):
        return text(made, name, heat, prompt=PROMPTS[room], max_new_tokens=length, seed=SEED)

    cases = [(room, heat, length) for room in PROMPTS for heat in (0.0, 1.0) for length in range(1, min(longest, room + 1) + 1)]
    return [case for case in cases if printed(*case) != naive(width, *case[:2])[: case[2]]]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EXACT)
def test_every_method_at_every_length_prints_what_whole_forwards_say(name, width, kernels):
    assert wrong(name, width, kernels) == []


def compiled(name, width, kernels):
    return isinstance(build(METHODS[name], models(width, kernels))[0].fast_write, CompiledBurst)


def test_the_matrix_holds_compiled_bursts_and_others(kernels):
    assert [compiled("hispec", width, kernels) for width in WIDTHS] == [kernels, False, False]
    assert not compiled("hispec_adaptive", "compiled", kernels)
    assert [len(naive("compiled", room, 1.0)) for room in PROMPTS] == [12, 5, 1]
    assert len({tuple(naive(width, CONTEXT - 1, heat)) for width in WIDTHS for heat in (0.0, 1.0)}) == 6


def test_the_control_a_burst_of_nothing_that_moves_its_mark_is_caught_where_bursts_are_compiled(kernels, monkeypatch):
    def moving(self, tokens, start, want, honest=CompiledBurst.__call__):
        if not want:
            self.reader.advance(start - 1)
        return honest(self, tokens, start, want)

    monkeypatch.setattr(CompiledBurst, "__call__", moving)
    every = [(name, width) for name in EXACT for width in ("compiled", "odd layers")]
    caught = [case for case in every if wrong(*case, kernels)]
    assert caught == [case for case in every if METHODS[case[0]].exits and compiled(*case, kernels)]
    assert {name for name, _ in caught} == (SHARED if kernels else set())


@st.composite
def methods(draw, layers):
    exits = tuple(sorted(draw(st.sets(st.integers(1, layers - 1), max_size=3))))
    draft = draw(st.sampled_from(["model", "none", "lookup", "cascade"]))
    flash = draw(st.booleans()) and (draft in ("model", "cascade") or (draft == "none" and bool(exits)))
    threshold = st.none() | st.floats(0, 1)
    return Method(
        draft=draft, head="flash" if flash else "dense", k=draw(st.integers(1, 7)), exits=exits,
        interval=draw(st.integers(1, 8)), finalize=draw(st.sampled_from(["eager", "deferred"])),
        probes=draw(st.integers(1, 16)),
        draft_doubt=draw(threshold), verify_doubt=draw(threshold),
        middle=draw(st.sampled_from(["exact", "typical"])),
    )  # fmt: skip


samplings = st.builds(
    Sampling, st.sampled_from(TEMPERATURES) | st.floats(1e-3, 2), st.sampled_from([0, 3, 10]), st.sampled_from([0.6, 0.8, 1.0]),
    st.integers(0, 2**31),
)  # fmt: skip
limits = st.fixed_dictionaries({"max_new_tokens": st.integers(1, 24), "stop": st.sets(st.integers(0, VOCAB - 1), max_size=4)})
kinds = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


@settings(max_examples=100)
@given(st.data(), st.integers(3, 8), st.integers(0, 2), kinds, samplings, limits)
def test_any_exact_method_on_any_model_prints_the_baselines_text(data, layers, seed, dtype, sampling, limit):
    pair, new, stop = duo(seed, dtype, layers=layers), limit["max_new_tokens"], tuple(limit["stop"])
    plain = generate(pair, PROMPT, "baseline", sampling, max_new_tokens=24, stop=()).tokens
    found = generate(pair, PROMPT, data.draw(methods(layers)), sampling, max_new_tokens=new, stop=stop)
    at = next((i + 1 for i, token in enumerate(plain) if token in stop), new)
    assert found.tokens == plain[: min(at, new)]


@pytest.mark.parametrize("method", ["dense", "flash", "hispec", Method(exits=(1, 5), k=2)], ids=str)
def test_the_control_an_inexact_method_is_caught(method):
    assert text(duo(), method, 0.7, rule="typical") != text(duo(), "baseline", 0.7)


@pytest.mark.parametrize("method", ["dense", "flash", "self_speculation", "hispec", Method("model", exits=(3,))], ids=str)
def test_the_examples_reject_early_and_late_and_accept_everything(method):
    events = [e for t in TEMPERATURES for e in run(duo(), method, t, k=2).events if e.stage and e.waiting]
    judged = {(e.waiting, e.kept) for e in events}
    assert any(kept == 0 for _, kept in judged) and any(0 < kept < waiting for waiting, kept in judged)
    assert any(0 < kept == waiting for waiting, kept in judged)


def test_greedy_is_temperature_zero_of_every_rule_and_a_seed_is_a_text():
    texts = [text(duo(), "flash", 0.0, rule=rule) for rule in ("coupling", "speculative", "typical")]
    assert texts == [text(duo(), "baseline", 0.0)] * 3
    assert len({tuple(text(duo(), "baseline", 1.5, seed=seed)) for seed in range(4)}) == 4
    warped = [Sampling(1.5), Sampling(1.5, top_k=3), Sampling(1.5, top_p=0.6)]
    assert len({tuple(generate(duo(), [5, 6], "flash", sampling, max_new_tokens=20).tokens) for sampling in warped}) == 3
    lossy = Sampling(1.0, rule="typical")
    assert METHODS["baseline"].exact(lossy) and not METHODS["dense"].exact(lossy)
    assert all(m.exact(Sampling(1.0, rule="coupling")) for m in METHODS.values())
    assert [n for n, m in METHODS.items() if not m.exact(Sampling(1.0, rule="speculative"))] == ["hispec_typical"]

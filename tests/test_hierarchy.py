"""Spans of one model compute no layer twice for a kept token, to the row; hierarchies refuse nonsense and say when exits fail."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import PROMPT, TEMPERATURES, config, duo, random_model, run, text

from flashspec import kernels
from flashspec.decoding import cascade as loop
from flashspec.decoding.generate import agreement, request, weak_exit
from flashspec.decoding.method import Method, cascade, hispec, self_speculation
from flashspec.decoding.models import Models
from flashspec.heads import FlashHead
from flashspec.measure.score import score
from flashspec.models.reader import SpanReader
from flashspec.models.transformer import Transformer
from flashspec.sampling import Sampling
from flashspec.theory import rows_read


@st.composite
def hierarchies(draw) -> Method:
    """Any exits of a six-layer model, with any schedule, heads and doubts."""
    exits = tuple(sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3))))
    threshold = st.none() | st.floats(0, 1)
    return Method(
        exits=exits, k=draw(st.integers(1, 5)), interval=draw(st.integers(1, 8)), head=draw(st.sampled_from(["dense", "flash"])),
        draft_doubt=draw(threshold), verify_doubt=draw(threshold), doubt=draw(st.sampled_from(["confidence", "entropy"])),
    )  # fmt: skip


def played(method: Method, temperature: float = 0.7, new: int = 21):
    """Stages, tokens and events of one decode."""
    ready = request(duo(), PROMPT, method, Sampling(temperature, seed=5), {"max_new_tokens": new, "stop": ()})
    steps = list(ready.steps())
    return ready.stages, [t for s in steps for t in s.tokens], [e for s in steps for e in s.events]


def rows_of(stages, events) -> list[int]:
    """Rows that each stage's reader has read."""
    return [sum(e.rows for e in events if e.stage == i) for i in range(len(stages))]


def expected(stages, tokens, events) -> list[int]:
    """The closed form: what is kept, and what was dropped at or above each span."""
    dropped = [sum(e.waiting - e.kept for e in events if e.stage == i) for i in range(1, len(stages))]
    return rows_read(len(PROMPT) + len(tokens) - 1, dropped)


@settings(max_examples=25)
@given(hierarchies(), st.sampled_from(TEMPERATURES), st.integers(1, 21))
def test_rows_computed_are_the_closed_form_to_the_row(method, temperature, new):
    stages, tokens, events = played(method, temperature, new)
    wanted = expected(stages, tokens, events)
    assert rows_of(stages, events) == wanted
    layers = sum(n * stage.reader.layers for n, stage in zip(wanted, stages, strict=True))
    assert score(events, stages, len(tokens)).layer_tokens == layers


def test_the_control_without_reuse_layers_are_computed_again():
    stages, tokens, events = played(Method(exits=(2, 4), k=2, reuse=False))
    work = sum(rows * s.reader.layers for rows, s in zip(rows_of(stages, events), stages, strict=True))
    assert work > 1.3 * 6 * (len(PROMPT) + len(tokens) - 1)
    assert tokens == played(Method(exits=(2, 4), k=2))[1]


class Counted(NamedTuple):
    """A decode with the `runs` of layers, by layer and all the text up to a token, less those of every token that was dropped,
    once for each layer at or below the stage that dropped it; and the lengths of the `bursts` that kernels wrote."""

    runs: Counter
    bursts: list[int]
    tokens: list[int]
    events: list


def counted(method: Method, dtype: torch.dtype, monkeypatch) -> Counted:
    """Counted where layers are run: in the engine of each reader, and in the kernels that write a whole burst."""
    model, runs, bursts = random_model(0, vocab_size=64).to(dtype), Counter(), list[int]()
    models = Models(model)
    models.heads["target", "flash"] = FlashHead.build(model.head_weight, model.norm, cluster_size=8, probes=3)
    ready = request(models, PROMPT, method, Sampling(0.7, seed=5), {"max_new_tokens": 21, "stop": ()})
    for stage in ready.stages:
        watch(stage.reader, runs)
    write = kernels.Writer.__call__

    def written(self, place, law):
        found = write(self, place, law)
        note(runs, range(self.span.depth), place.tokens.tolist(), range(place.seen, place.start + place.want - 1))
        bursts.append(place.want)
        return found

    check = loop.check

    def checked(state, i):
        first, waiting = state.marks[i], state.tokens[: state.length].tolist()
        found = check(state, i)
        dropped = range(first + found[-1].kept, len(waiting))
        runs.subtract((layer, tuple(waiting[: p + 1])) for layer in range(state.stages[i].reader.stop) for p in dropped)
        return found

    monkeypatch.setattr(kernels.Writer, "__call__", written)
    monkeypatch.setattr(loop, "check", checked)
    steps = list(ready.steps())
    return Counted(runs, bursts, [t for s in steps for t in s.tokens], [e for s in steps for e in s.events])


def note(counts: Counter, layers: range, tokens: list[int], positions: range) -> None:
    """One execution of each layer for the token at each position, known by all the text up to it."""
    counts.update((layer, tuple(tokens[: position + 1])) for layer in layers for position in positions)


def watch(reader, counts: Counter) -> None:
    """Count what a reader's engine runs, for the tokens that the reader was last asked to read."""
    run_engine, read, asked = reader.engine.run, reader.read, list[int]()

    def reading(tokens):
        asked[:] = tokens.tolist()
        return read(tokens)

    def running(x, start):
        note(counts, range(reader.start, reader.stop), asked, range(start, start + len(x)))
        return run_engine(x, start)

    reader.engine.run, reader.read = running, reading


REUSING = [hispec(2, 4), hispec(1, 3, 3, 5, head="flash"), hispec(3, 5, 1, 8), self_speculation(2, 4)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "kernels"])
@pytest.mark.parametrize("method", REUSING, ids=str)
def test_every_layer_runs_once_for_a_kept_token_and_once_each_time_one_is_dropped(method, dtype, monkeypatch):
    found = counted(method, dtype, monkeypatch)
    whole = [*PROMPT, *found.tokens]
    once = {(layer, tuple(whole[:end])): 1 for layer in range(6) for end in range(1, len(whole))}
    assert {key: count for key, count in found.runs.items() if count} == once
    assert any(e.kept < e.waiting for e in found.events)
    assert bool(found.bursts) == (dtype == torch.float32), "this test needs a C compiler"


def test_the_control_without_reuse_lower_layers_run_again_for_kept_tokens(monkeypatch):
    found = counted(hispec(2, 4, reuse=False), torch.float64, monkeypatch)
    assert [found.runs[layer, tuple(PROMPT)] for layer in range(6)] == [3, 3, 2, 2, 1, 1]


def test_the_control_a_reader_that_forgets_too_much_runs_layers_again(monkeypatch):
    monkeypatch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, max(0, n - 1))))
    found = counted(hispec(2, 4), torch.float64, monkeypatch)
    assert max(found.runs.values()) > 1


def trio() -> Models:
    """A six-layer target, a middle model and a draft, which imitate it."""
    pair = duo()
    middle = Transformer(config(4)).eval().requires_grad_(False).double()
    middle.load_state_dict({name: pair.target.state_dict()[name] for name in middle.state_dict()})
    return Models(pair.target, pair.draft, between=(middle,))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_cascade_of_three_models_prints_the_targets_text(temperature):
    out = run(trio(), cascade(2, 5), temperature)
    assert out.tokens == text(duo(), "baseline", temperature)
    assert {e.stage for e in out.events if e.waiting} == {1, 2}
    assert run(trio(), "dense", temperature).tokens == out.tokens


def test_names_give_methods_and_refuse_nonsense():
    assert hispec(1, 2, 3, 4) == Method(exits=(1, 2), k=3, interval=4)
    assert self_speculation(3, 5, head="flash") == Method(exits=(3,), k=5, head="flash")
    for call, message in [
        (lambda: hispec(4, 2), r"exits must be layer numbers from 1, in rising order, got \(4, 2\)"),
        (lambda: hispec(0, 2), "exits must be layer numbers from 1"),
        (lambda: hispec(n_d=0), "k and interval must be at least 1, got k=0"),
        (lambda: hispec(n_i=0), "k and interval must be at least 1"),
        (lambda: cascade(n_i=0), "k and interval must be at least 1"),
        (lambda: run(duo(), hispec(2, 9)), "exits must lie below the target's 6 layers"),
        (lambda: run(Models(duo().target), cascade()), "none is loaded"),
        (lambda: Method(draft="lookup", head="flash"), "prompt lookup has no vocabulary head"),
        (lambda: Method(ngram=0), "ngram must be at least 1"),
        (lambda: Method(middle="sloppy"), "middle must be one of exact, typical"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def stranger() -> Models:
    """A model whose upper layers undo what the lower ones say."""
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


def test_the_control_usable_exits_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(duo(), "self_speculation")
        run(stranger(), "baseline")


def test_a_span_ends_inside_the_model():
    with pytest.raises(ValueError, match="a span must end between layer 1 and 6, got 9"):
        SpanReader(duo(0, torch.float32).target, 9)

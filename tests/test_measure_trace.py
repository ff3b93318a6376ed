"""Replaying a recorded target gives the counts of the live decode, and refuses a draft that does not belong to it."""

from dataclasses import replace

import pytest
import shelf
import tiny
import toys

from flashspec import Method, Models, Sampling, load, theory
from flashspec.measure import trace as tracing
from flashspec.measure.prompts import Prompt
from flashspec.once import Once

PROMPTS = [Prompt("code", tuple(toys.PROMPT)), Prompt("prose", (9, 9, 8, 2))]
DENSE, FLASH = Method("model"), Method("model", "flash")


def live(models, method, sampling, k, new=24):
    runs = [
        toys.run(models, replace(method, k=k), sampling.temperature, sampling.rule, prompt=list(p.ids), max_new_tokens=new,
                 seed=sampling.seed).stats
        for p in PROMPTS
    ]  # fmt: skip
    return tuple(sum(getattr(run, name) for run in runs) for name in ("rounds", "drafted", "accepted", "emitted"))


def replayed(models, method, sampling, k, new=24):
    trace = tracing.record(Models(models.target), PROMPTS, sampling, new)
    alone = Models(models.draft, models.draft, heads=Once({("draft", "flash"): models.head("draft", "flash")}))
    return theory.replayed_all(tracing.replay_texts(trace, alone, method), k)


@pytest.mark.parametrize("method", [DENSE, FLASH, replace(FLASH, selection="sample")], ids=["dense", "flash", "sampled"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=5)], ids=["greedy", "coupled"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_replay_counts_what_the_live_decode_counts(method, sampling, k):
    assert replayed(toys.duo(), method, sampling, k) == live(toys.duo(), method, sampling, k)


def test_the_same_holds_in_float32_and_on_the_compiled_kernels_and_for_no_other_draft():
    models = tiny.pair()
    assert replayed(models, DENSE, Sampling(), 4) == live(models, DENSE, Sampling(), 4)
    assert replayed(toys.duo(noise=0.5), DENSE, Sampling(), 4) != live(toys.duo(), DENSE, Sampling(), 4)


def test_speculative_sampling_is_replayed_in_expectation():
    models, tars = toys.duo(), []
    expected = emitted = 0.0
    for seed in range(12):
        sampling = Sampling(1.0, seed=seed, rule="speculative")
        found = replayed(models, DENSE, sampling, 4, new=10)
        expected, emitted = expected + found.rounds, emitted + found.emitted
        tars.append(live(models, DENSE, sampling, 4, new=10)[0])
    spread = (sum((n - sum(tars) / 12) ** 2 for n in tars)) ** 0.5  # of the sum of independent counts
    assert abs(sum(tars) - expected) < 4 * spread
    assert abs(sum(tars) - emitted) > 3 * spread  # the control: a draft that is never kept


@pytest.fixture(scope="module")
def recorded(folders):
    models = load(folders["target"], folders["draft"])
    return tracing.record(models, [Prompt("code", (3, 1, 4))], Sampling(), 8)


def test_a_trace_is_stored_and_read_back_and_one_of_another_target_refused(recorded, folders, tmp_path):
    recorded.save(tmp_path / "trace.json")
    assert tracing.Trace.load(tmp_path / "trace.json") == recorded
    tracing.check_target(recorded, folders["target"])
    with pytest.raises(ValueError, match=r"recorded from another target \(digest .*, draft has "):
        tracing.check_target(recorded, folders["draft"])


def test_another_tokenizer_is_refused_with_the_ids_that_differ(recorded, tmp_path):
    from tokenizers import Tokenizer

    shelf.train_tokenizer(tmp_path / "other.json", "quite another text " * 40)
    tokenizer = Tokenizer.from_file(str(tmp_path / "other.json"))
    first = next(n for n, word in recorded.words.items() if tokenizer.id_to_token(n) != word)
    with pytest.raises(ValueError, match=f"recorded ids differ, such as {first} "):
        tracing.check_words(recorded, tokenizer)


def test_texts_that_depend_on_the_draft_and_texts_too_long_for_it_are_refused():
    models = toys.duo()
    with pytest.raises(ValueError, match="depends on the draft"):
        tracing.record(models, PROMPTS, Sampling(1.0, rule="typical"), 4)
    trace = tracing.record(models, PROMPTS, Sampling(), 60)
    with pytest.raises(ValueError, match="'in_context' learns from verifications"):
        list(tracing.replay_texts(trace, models, Method("model", "in_context")))
    short = toys.random_model(0, layers=2, context=64)
    with pytest.raises(ValueError, match="draft's context holds 64"):
        list(tracing.replay_texts(trace, Models(models.target, short), DENSE))

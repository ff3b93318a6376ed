"""Every bad input is refused in one sentence that says what to do, and leaves nothing half-written and nothing changed."""

import json
import shutil
from pathlib import Path

import pytest
import shelf
import torch

import flashspec as fs
from flashspec.decoding.models import Models
from flashspec.models.synthetic import synthetic

PROMPT = "def f(x):"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return shelf.write_pair(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def models(shipped):
    return load(shipped)


@pytest.fixture
def copy(shipped, tmp_path):
    """Folders that a test may damage."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in shipped.items()}


def load(folders):
    return fs.load(str(folders["target"]), str(folders["draft"]), dtype="float32", device="cpu")


def text(models, **options):
    return fs.generate(models, PROMPT, "flash", max_new_tokens=12, probes=4, **options).tokens


def contents(folders):
    return {path: path.read_bytes() for folder in folders.values() for path in folder.rglob("*") if path.is_file()}


def refusal(call, kind=ValueError):
    """The one sentence with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message.strip()
    return message


SAMPLINGS = {
    "temperature below zero": ({"temperature": -0.1}, "temperature must be 0"),
    "temperature not a number": ({"temperature": float("nan")}, "temperature must be 0"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature must be 0"),
    "top-p zero": ({"top_p": 0.0}, r"top_p must lie in (0, 1]"),
    "top-p above one": ({"top_p": 1.01}, r"top_p must lie in (0, 1]"),
    "top-p not a number": ({"top_p": float("nan")}, r"top_p must lie in (0, 1]"),
    "top-k below zero": ({"top_k": -1}, "top_k must be 0"),
    "unknown rule": ({"rule": "hope"}, "known: coupling"),
}

CALLS = {
    "empty prompt": ({"prompt": ""}, "prompt is empty"),
    "empty ids": ({"prompt": []}, "prompt is empty"),
    "prompt as long as the context": ({"prompt": [1] * 256}, "context holds 256; shorten it to 255"),
    "prompt id outside the vocabulary": ({"prompt": [1, 512]}, "between 0 and 511"),
    "prompt id below zero": ({"prompt": [-1, 2]}, "between 0 and 511"),
    "no drafted token": ({"k": 0}, "must be at least 1"),
    "more probes than clusters": ({"probes": 33}, "at most the 32 clusters"),
    "no probe": ({"probes": 0}, "probes must be at least 1"),
    "nothing to write": ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    "unknown method": ({"method": "magic"}, "known: baseline"),
    "unknown option": ({"temprature": 1.0}, "options: draft"),
    "unknown finalisation": ({"finalize": "later"}, "eager, deferred"),
    "exit above the top": ({"method": "self_speculation", "exits": (9,)}, "below the target's"),
    "exit zero": ({"method": "self_speculation", "exits": (0,)}, "layer numbers from 1"),
    "a penalty, which there is none of": ({"repetition_penalty": 1.1}, "is no option of a method"),
    "exits out of order": ({"method": "hispec", "exits": (3, 2)}, "rising order"),
    "flash head on plain decoding": ({"method": "baseline", "head": "flash"}, "needs a verifier"),
}


@pytest.mark.parametrize("case", SAMPLINGS)
def test_a_bad_sampling_is_refused(case):
    values, word = SAMPLINGS[case]
    assert word in refusal(lambda: fs.Sampling(**values))


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_is_refused_and_the_next_one_is_as_ever(models, case):
    options, word = CALLS[case]
    expected = text(models)
    prompt, method = options.get("prompt", PROMPT), options.get("method", "flash")
    rest = {name: value for name, value in options.items() if name not in ("prompt", "method")}
    assert word in refusal(lambda: fs.generate(models, prompt, method, **rest))
    assert text(models) == expected


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize("method", ["baseline", "dense", "flash"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_refused_and_never_become_a_token(shipped, which, method, temperature):
    if method == "baseline" and which == "draft":
        pytest.skip("plain decoding has no draft")
    models = load(shipped)
    if method == "flash":
        models.head("draft", "flash")
    with torch.no_grad():
        models.model(which).layers[0].mlp.down.weight[0, 0] = float("nan")
    sampling = fs.Sampling(temperature, rule="speculative")
    call = lambda: fs.generate(models, [3, 1, 4], method, sampling, max_new_tokens=8)  # noqa: E731
    if which == "target":
        assert "NaN logits" in refusal(call, FloatingPointError)
        return
    try:
        tokens = call().tokens
    except FloatingPointError as error:
        assert "NaN logits" in str(error)
    else:
        clean = load(shipped)
        assert temperature or tokens == fs.generate(clean, [3, 1, 4], "baseline", sampling, max_new_tokens=8).tokens


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "digests.json").unlink()


def shorten_without_digests(folder):
    (folder / "digests.json").unlink()
    shorten(folder / "model.safetensors")


DAMAGE = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no folder": (shutil.rmtree, "no model at"),
    "truncated weights": (lambda folder: shorten(folder / "model.safetensors"), "fetch it again"),
    "truncated weights without digests": (shorten_without_digests, "truncated"),
    "one bit of the weights": (lambda folder: flip(folder / "model.safetensors"), "digests.json expects"),
    "another config": (lambda folder: shorten(folder / "config.json"), "config.json"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="mamba", architectures=["MambaForCausalLM"]), "mamba"),
    "another shape": (lambda folder: edit_config(folder, hidden_size=64), "different models"),
}


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_was(copy, case, which):
    damage, word = DAMAGE[case]
    damage(copy[which])
    before = contents(copy)
    assert word.lower() in refusal(lambda: load(copy), (ValueError, FileNotFoundError)).lower()
    assert contents(copy) == before


def test_vocabularies_of_different_sizes_are_refused(models):
    from dataclasses import replace

    smaller = synthetic(replace(models.draft.config, vocab_size=500), torch.float32)
    assert "one tokenizer" in refusal(lambda: Models(models.target, smaller))


def test_vocabularies_of_one_size_and_different_words_are_refused(copy):
    shelf.train_tokenizer(copy["draft"] / "tokenizer.json", "entirely other words, said over and over " * 20)
    (copy["draft"] / "digests.json").unlink()
    assert "one tokenizer" in refusal(lambda: load(copy))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dtype": "float8"}, "auto, float32, bfloat16"),
        ({"weights": "int3"}, "auto, int4, dense"),
        ({"weights": "int4"}, "no 4-bit weights"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"device": "gpu"}, "use auto, cpu or cuda"),
    ],
)
def test_a_way_of_loading_that_is_not_there_is_refused(shipped, options, word):
    call = lambda: fs.load(str(shipped["target"]), None, **{"device": "cpu", **options})  # noqa: E731
    assert word in refusal(call)


def overwrite(path):
    path.write_text("{")


def take_apart(path):
    path.write_text('{"version": "1.0"}')


def twist(path):
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"model": raw["model"] | {"type": "Hope"}}))


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize(
    ("damage", "word"), [(overwrite, "not valid JSON"), (take_apart, "has no model"), (twist, "tokenizer.json")]
)
def test_a_damaged_tokenizer_is_refused_by_its_file(copy, which, damage, word):
    damage(copy[which] / "tokenizer.json")
    (copy[which] / "digests.json").unlink()
    if (which, damage) == ("draft", twist):
        load(copy)  # only the target's tokenizer is ever run
        return
    said = refusal(lambda: load(copy))
    assert word in said and str(copy[which] / "tokenizer.json") in said and "copy the file again" in said


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_tokenizer_that_is_missing_is_said_when_it_is_needed(copy, which):
    (copy[which] / "tokenizer.json").unlink()
    (copy[which] / "digests.json").unlink()
    alone = load(copy)
    assert len(fs.generate(alone, [3, 1, 4], "dense", max_new_tokens=4, stop=()).tokens) == 4
    if which == "target":
        said = refusal(lambda: fs.generate(alone, PROMPT, "dense"))
        assert "no tokenizer.json" in said and "as token ids" in said


def test_a_method_without_its_draft_is_refused(shipped):
    alone = fs.load(str(shipped["target"]), None, dtype="float32", device="cpu")
    assert "none is loaded" in refusal(lambda: fs.generate(alone, PROMPT, "dense"))


def test_the_control_a_sound_call_is_not_refused(shipped, copy):
    assert text(load(copy)) == text(load(shipped))


def test_a_draft_bigger_than_its_target_is_refused(shipped):
    said = refusal(lambda: fs.load(str(shipped["draft"]), str(shipped["target"]), dtype="float32", device="cpu"))
    assert "the draft is bigger than its target" in said and "swap them" in said
    same = fs.load(str(shipped["target"]), str(shipped["target"]), dtype="float32", device="cpu")
    assert same.draft is not None

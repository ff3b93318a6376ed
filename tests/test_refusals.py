"""Every bad input is refused in one sentence that says what to do, and leaves nothing half-written and nothing changed."""

import json
import shutil
from pathlib import Path

import pytest
import shelf

import flashspec as fs

PROMPT = "def f(x):"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return shelf.write_pair(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def models(shipped):
    return load(shipped)


@pytest.fixture
def copy(shipped, tmp_path):
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in shipped.items()}


def load(folders):
    return fs.load(str(folders["target"]), str(folders["draft"]), dtype="float32", device="cpu")


def text(models, **options):
    return fs.generate(models, PROMPT, "flash", max_new_tokens=12, probes=4, **options).tokens


def refusal(call, kind=ValueError):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message.strip()
    return message


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


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_is_refused_and_the_next_one_is_as_ever(models, case):
    options, word = CALLS[case]
    expected = text(models)
    prompt, method = options.get("prompt", PROMPT), options.get("method", "flash")
    rest = {name: value for name, value in options.items() if name not in ("prompt", "method")}
    assert word in refusal(lambda: fs.generate(models, prompt, method, **rest))
    assert text(models) == expected


@pytest.mark.parametrize(("options", "word"), [
    ({"dtype": "float8"}, "auto, float32, bfloat16"),
    ({"weights": "int3"}, "auto, int4, dense"),
    ({"weights": "int4"}, "no 4-bit weights"),
    ({"device": "cuda:99"}, "'cuda:99'"),
    ({"device": "gpu"}, "use auto, cpu or cuda"),
])  # fmt: skip
def test_a_way_of_loading_that_is_not_there_is_refused(shipped, options, word):
    call = lambda: fs.load(str(shipped["target"]), None, **{"device": "cpu", **options})  # noqa: E731
    assert word in refusal(call)


def spoil_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    (folder / "digests.json").unlink()


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize(("text", "word"), [("{", "not valid JSON"), ('{"version": "1.0"}', "has no model")])
def test_a_damaged_tokenizer_is_refused_by_its_file(copy, which, text, word):
    spoil_tokenizer(copy[which], text)
    said = refusal(lambda: load(copy))
    assert word in said and str(copy[which] / "tokenizer.json") in said and "copy the file again" in said


def test_only_the_tokenizer_of_the_target_is_run(copy):
    raw = json.loads((copy["target"] / "tokenizer.json").read_text())
    unknown = json.dumps(raw | {"model": raw["model"] | {"type": "Hope"}})
    spoil_tokenizer(copy["draft"], unknown)
    load(copy)
    spoil_tokenizer(copy["target"], unknown)
    assert "copy the file again" in refusal(lambda: load(copy))


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_tokenizer_that_is_missing_is_said_when_it_is_needed(copy, which):
    (copy[which] / "tokenizer.json").unlink()
    (copy[which] / "digests.json").unlink()
    alone = load(copy)
    assert len(fs.generate(alone, [3, 1, 4], "dense", max_new_tokens=4, stop=()).tokens) == 4
    if which == "target":
        said = refusal(lambda: fs.generate(alone, PROMPT, "dense"))
        assert "no tokenizer.json" in said and "as token ids" in said


def test_the_control_a_sound_call_is_not_refused(shipped, copy):
    assert text(load(copy)) == text(load(shipped))


def test_a_draft_bigger_than_its_target_is_refused(shipped):
    said = refusal(lambda: fs.load(str(shipped["draft"]), str(shipped["target"]), dtype="float32", device="cpu"))
    assert "the draft is bigger than its target" in said and "swap them" in said
    same = fs.load(str(shipped["target"]), str(shipped["target"]), dtype="float32", device="cpu")
    assert same.draft is not None

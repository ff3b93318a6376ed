"""Every bad input is refused in one sentence that says what to do, and leaves nothing half-written and nothing changed."""

import json
import shutil
from pathlib import Path

import pytest

import flashspec as fs


@pytest.fixture
def copy(folders, tmp_path):
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items() if name != "prompts"}


def load(folders):
    return fs.load(str(folders["target"]), str(folders["draft"]), dtype="float32", device="cpu")


def refusal(call):
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("options", "word"), [
    ({"dtype": "float8"}, "auto, float32, bfloat16"),
    ({"weights": "int3"}, "auto, int4, dense"),
    ({"weights": "int4"}, "no 4-bit weights"),
    ({"device": "cuda:99"}, "'cuda:99'"),
    ({"device": "gpu"}, "use auto, cpu or cuda"),
])  # fmt: skip
def test_a_way_of_loading_that_is_not_there_is_refused(folders, options, word):
    assert word in refusal(lambda: fs.load(str(folders["target"]), None, **{"device": "cpu", **options}))


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
    assert load(copy).encode("x")
    spoil_tokenizer(copy["target"], unknown)
    assert "copy the file again" in refusal(lambda: load(copy))


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_tokenizer_that_is_missing_is_said_when_it_is_needed(copy, which):
    (copy[which] / "tokenizer.json").unlink()
    (copy[which] / "digests.json").unlink()
    alone = load(copy)
    assert len(fs.generate(alone, [3, 1, 4], "dense", max_new_tokens=4, stop=()).tokens) == 4
    if which == "target":
        said = refusal(lambda: fs.generate(alone, "def f(x):", "dense"))
        assert "no tokenizer.json" in said and "as token ids" in said


def test_a_draft_bigger_than_its_target_is_refused_and_one_as_big_is_not(folders):
    said = refusal(lambda: load({"target": folders["draft"], "draft": folders["target"]}))
    assert "the draft is bigger than its target" in said and "swap them" in said
    assert load({"target": folders["target"], "draft": folders["target"]}).draft is not None

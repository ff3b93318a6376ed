"""Arguments of the wrong type, and models that cannot be loaded or not together, are refused in one sentence."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shelf
import torch
import toys
from shelf import refused, refusing
from torch import nn
from toys import duo

import flashspec as fs
from flashspec import Models, Sampling, generate, load
from flashspec.typed import typed


@pytest.fixture
def copy(folders, tmp_path):
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items() if name != "prompts"}


@pytest.mark.parametrize(("options", "word"), [
    ({"dtype": "float8"}, "auto, float32, bfloat16"),
    ({"weights": "int3"}, "auto, int4, dense"),
    ({"weights": "int4"}, "no 4-bit weights"),
    ({"device": "cuda:99"}, "'cuda:99'"),
    ({"device": "gpu"}, "use auto, cpu or cuda"),
])  # fmt: skip
def test_a_way_of_loading_that_is_not_there_is_refused(folders, options, word):
    refused(word, fs.load, str(folders["target"]), None, **{"device": "cpu", **options})


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize(("change", "word"), [
    (lambda text: "{", "EOF"), (lambda text: '{"version": "1.0"}', "Model missing"),
    (lambda text: text.replace('"type": "BPE"', '"type": "Hope"'), ""),
])  # fmt: skip
def test_a_damaged_tokenizer_is_refused_by_its_file(copy, which, change, word):
    assert pair(copy).encode("x")
    path = copy[which] / "tokenizer.json"
    path.write_text(change(path.read_text()))
    (copy[which] / "digests.json").unlink()
    refused(f"{path}.*{word}.*copy the file again", pair, copy)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_tokenizer_that_is_missing_is_said_when_it_is_needed(copy, which):
    (copy[which] / "tokenizer.json").unlink()
    (copy[which] / "digests.json").unlink()
    alone = pair(copy)
    assert len(fs.generate(alone, [3, 1, 4], "dense", max_new_tokens=4, stop=()).tokens) == 4
    if which == "target":
        refused("no tokenizer.json.*as token ids", fs.generate, alone, "def f(x):", "dense")


def test_a_draft_bigger_than_its_target_is_refused_and_one_as_big_is_not(folders):
    swapped = {"target": folders["draft"], "draft": folders["target"]}
    refused("the draft is bigger than its target.*swap them", pair, swapped)
    assert pair({"target": folders["target"], "draft": folders["target"]}).draft is not None


PROMPT = [3, 1, 4, 1, 5]
EXTRA = {"target": {"target": 24}, "draft": {"draft": 24}, "both": {"target": 40, "draft": 8}}


def padded(model, rows):
    for module in (model.embed, model.head):
        weight = module.weight.detach()
        module.weight = nn.Parameter(torch.cat([weight, 50 * weight[:rows]])[: shelf.VOCAB + rows])
    model.config = replace(model.config, vocab_size=shelf.VOCAB + rows)
    return model


def written(home, extra):
    home.mkdir(parents=True, exist_ok=True)
    folders = shelf.write_pair(home)
    for role, rows in extra.items():
        padded(shelf.pair().model(role), rows).save(folders[role], "float32")
        (folders[role] / "digests.json").unlink(missing_ok=True)
        (folders[role] / "tokenizer.json").write_bytes((home / "tokenizer.json").read_bytes())
    return folders


def pair(folders):
    return load(folders["target"], folders["draft"], dtype="float32", device="cpu")


def text(models, method, temperature=0.0):
    options = {"max_new_tokens": 20, "stop": ()} | ({"probes": 4} if method == "flash" else {})
    return generate(models, PROMPT, method, Sampling(temperature, seed=3), **options).tokens


@pytest.mark.parametrize("who", EXTRA)
def test_padding_of_different_sizes_changes_no_text(who, folders, tmp_path):
    plain, cut = pair(folders), pair(written(tmp_path, EXTRA[who]))
    size = shelf.VOCAB + min(EXTRA[who].get(role, 0) for role in ("target", "draft"))
    assert {model.config.vocab_size for model in (cut.target, cut.draft)} == {size} and plain.cut == ()
    for temperature in (0.0, 0.7):
        texts = {method: text(cut, method, temperature) for method in ("baseline", "dense", "flash")}
        assert texts["dense"] == texts["flash"] == texts["baseline"]
        if who != "both":
            assert texts["baseline"] == text(plain, "baseline", temperature)


def test_the_control_padding_that_is_not_cut_is_written(tmp_path):
    alone = load(written(tmp_path, EXTRA["target"])["target"], None, dtype="float32", device="cpu")
    assert max(text(alone, "baseline")) >= shelf.VOCAB


def test_a_stored_head_of_the_whole_weight_is_left_aside(tmp_path):
    folders = written(tmp_path, EXTRA["draft"])
    load(folders["draft"], folders["draft"], dtype="float32", device="cpu").head("draft", "flash").save(folders["draft"])
    cut = pair(folders)
    assert cut.cut == ("draft",) and cut.head("draft", "flash").vocab_size == shelf.VOCAB


def test_a_model_that_transformers_reads_is_cut_too(folders, tmp_path):
    pytest.importorskip("transformers")
    from flashspec.models.adapter import Adapter

    long, plain = written(tmp_path, EXTRA["target"]), pair(folders)
    for hidden in (True, False):
        model = Adapter.load(long["target"], "float32")
        model.head_weight = model.head_weight if hidden else None
        model.cut_vocabulary(shelf.VOCAB)
        assert model.width == (model.config.hidden if hidden else shelf.VOCAB)
        assert text(Models(model, plain.draft), "dense") == text(plain, "baseline")


def test_rows_that_no_tokenizer_explains_are_refused(tmp_path):
    folders, short = written(tmp_path / "long", EXTRA["target"]), written(tmp_path / "short", {"draft": -20})
    words = r"different vocabularies \(512 and 536 ids\); use two models that share one tokenizer"
    (folders["target"] / "tokenizer.json").unlink()
    refused(words, pair, folders)
    refused("the draft has rows for 492 ids and its tokenizer knows 512.*copy", pair, short)


NAN, INF = float("nan"), float("inf")
WHOLE, LIST, STRING = "a whole number", "a list of whole numbers", "a string"
LISTS = (b"def", [1.0, 2.0], 5, ["def"], [[1, 2], [3, 4]], {1: 2}, torch.ones(3), torch.tensor(3), np.array(3), iter([1, 2]))
RULES = (fs.GumbelCoupling, fs.SpeculativeSampling, fs.TypicalAcceptance)
STAGES = fs.build(fs.METHODS["dense"], duo(), context=32)


def write(prompt=toys.PROMPT, method="dense", **options):
    return fs.generate(duo(), prompt, method, **{"max_new_tokens": 3, **options})


def head(**options):
    return fs.FlashHead.build(torch.randn(64, 16), **{"cluster_size": 4, **options})


WRONG = [  # a call, its argument, what that must be, and values that are something else
    (fs.Method, "k", WHOLE, (2.5, np.float64(4), "9", [3])), (fs.Method, "exits", LIST, LISTS),
    (fs.Sampling, "temperature", "a number", ("hot", True, torch.ones(1), 2**70, 10**400)),
    (fs.Sampling, "rule", STRING, (3, b"top")), (fs.load, "target", "a string or Path", (3, None)),
    (fs.load, "draft", "strings", [[1]]), (fs.Method, "draft", STRING, [None]),
    (fs.Limits, "max_new_tokens", WHOLE, ["9"]), (fs.Limits, "stop", LIST, ["\n"]), (fs.Transformer.load, "folder", "Path", [3]),
    (write, "prompt", LIST, (b"def", None)), (write, "stop", LIST, ["\n", (1, "2")]), (write, "method", STRING, [3]),
    (write, "k", WHOLE, ["9"]), (write, "sampling", "Sampling", [0.7]),
    (lambda models: fs.generate(models, toys.PROMPT), "models", "Models", ["reference"]),
    (partial(fs.decode, STAGES), "prompt", LIST, LISTS[:2]),
    (lambda stages: fs.decode(stages, toys.PROMPT), "stages", "a list of Stage", (None, ["target"])),
    (partial(fs.decode, STAGES, toys.PROMPT), "limits", "Limits", [20]),
    (partial(fs.build, fs.Method(), duo()), "context", WHOLE, ["9"]),
    (lambda method: fs.build(method, duo()), "method", "Method", ["dense"]),
    (lambda models: fs.build(fs.Method(), models), "models", "Models", [duo().target]),
    (fs.Transformer, "config", "ModelConfig", [{"layers": 2}]), (fs.FlashHead.build, "weight", "Tensor", [[[1.0]]]),
    (head, "cluster_size", WHOLE, [2.5]), (head, "always", LIST, LISTS), (head, "clusters", "Clusters", [4]),
    (lambda probes: head().with_plan(probes=probes), "probes", WHOLE, [2.5]),
    (lambda weight: fs.DenseHead(None, weight), "weight", "Tensor or Packed", [1]),
    (lambda norm: fs.DenseHead(norm, torch.ones(8, 8)), "norm", "Callable", [torch.ones(8)]),
    (lambda path: fs.FlashHead.load(path, torch.ones(8, 8)), "path", "Path or a string", [3]),
    *((lambda vocab_size, kind=kind: kind(fs.Sampling(), vocab_size), "vocab_size", WHOLE, [2.5]) for kind in RULES),
]  # fmt: skip
KINDS = [(call, name, value, words) for call, name, words, values in WRONG for value in values]


@pytest.mark.parametrize(("call", "name", "value", "words"), KINDS, ids=lambda v: v if isinstance(v, str) else None)
def test_a_wrong_type_is_refused_by_the_arguments_name(call, name, value, words):
    with pytest.raises(ValueError) as caught:
        call(**{name: value})
    said = str(caught.value)
    assert said.startswith(name) and words in said and "got " in said and "\n" not in said and len(said) < 300


test_a_sampling_that_means_nothing_is_refused = refusing([
    *[(lambda value=value: fs.Sampling(value), r"temperature must be 0 \(greedy\) or at least 0.001, and finite")
      for value in (1e-40, 9e-4, NAN, -0.5, INF)],
    *[(lambda value=value: fs.Sampling(top_p=value), r"top_p must lie in \(0, 1\]") for value in (0.0, 1.01, NAN)],
    (lambda: fs.Sampling(top_k=-1), "top_k must be 0"),
    (lambda: fs.Sampling(rule="hope"), "rule must be one of coupling.*, got 'hope'"),
])  # fmt: skip


def test_whole_numbers_and_lists_of_other_libraries_are_as_good():
    expected = write(k=2, stop=(5,), prompt=toys.PROMPT).tokens
    same = {"k": np.int64(2), "stop": {5}, "max_new_tokens": np.int32(3), "sampling": fs.Sampling(0, seed=np.int64(0))}
    for prompt in (tuple(toys.PROMPT), np.array(toys.PROMPT), torch.tensor(toys.PROMPT)):
        assert write(**same, prompt=prompt).tokens == expected
    assert fs.Sampling(np.float32(0.5)) == fs.Sampling(0.5)
    hot, cold = (write(sampling=fs.Sampling(1.0, seed=seed)).tokens for seed in (np.int64(3), 3))
    assert hot == cold != write(sampling=fs.Sampling(1.0, seed=4)).tokens
    assert fs.build(fs.Method(exits=[2]), duo(), context=np.int64(32))[0].reader.context == 32
    assert fs.Method(exits=[2, 4]) == fs.Method(exits=torch.tensor([2, 4])) == fs.Method(exits=(2, 4))
    assert len({fs.Limits(stop=[5]), fs.Limits(stop=np.array([5])), fs.Limits(stop=(5,))}) == 1

    @typed
    def call(one: int, two, *, three: list[str] | None = None, four: bool = True):
        return one, two, three

    assert call(1, object, three=None)[0] == 1 and call(1, "2", three=["a"])[2] == ["a"]
    refused("three must be a list of strings or None, got 'a'", call, 1, "2", three="a")
    refused("four must be True or False, got 0", call, 1, "2", four=0)
    refused("context must be at least 1, got 0", fs.build, fs.Method(), duo(), context=0)

"""An argument of the wrong type is refused in one sentence that names it, what was expected and what was given."""

import numpy as np
import pytest
import torch
from shelf import refused, refusing
from toys import PROMPT, duo

import flashspec as fs
from flashspec.typed import typed

WHOLE, NUMBER, LIST, FLAG = "a whole number", "a number", "a list of whole numbers", "True or False"
STRING, PATH = "a string", "a string or Path"
NAN, INF = float("nan"), float("inf")


def write(**options):
    return fs.generate(duo(), options.pop("prompt", PROMPT), options.pop("method", "dense"), **{"max_new_tokens": 3, **options})


def stages():
    return fs.build(fs.METHODS["dense"], duo(), context=32)


def head(**options):
    return fs.FlashHead.build(torch.randn(64, 16), cluster_size=options.pop("cluster_size", 4), **options)


RULES = (fs.GumbelCoupling, fs.SpeculativeSampling, fs.TypicalAcceptance)
WRONG = [
    *[(fs.Sampling, "temperature", value, NUMBER) for value in ("hot", True, torch.ones(1), 2**70, 10**400)],
    *[(fs.Sampling, name, value, WHOLE) for name, value in (("top_k", 1.5), ("top_k", "5"), ("seed", 1.0), ("seed", None))],
    (fs.Sampling, "top_p", "0.9", NUMBER), (fs.Sampling, "rule", 1, STRING),
    (fs.Limits, "max_new_tokens", 2.5, WHOLE), (fs.Limits, "finalize", None, STRING),
    *[(fs.Limits, "stop", value, LIST) for value in ("\n", (1, "2"))],
    *[(fs.Method, name, value, STRING) for name, value in (("draft", None), ("head", 3), ("selection", b"top"))],
    *[(fs.Method, "k", value, WHOLE) for value in (2.5, np.float64(4))],
    *[(fs.Method, "interval", value, WHOLE) for value in (None, [3])],
    *[(fs.Method, "exits", value, LIST) for value in (2, "2", torch.tensor(3))],
    (fs.Method, "probes", 1.0, WHOLE), (fs.Method, "shortlist", "all", WHOLE),
    (fs.Method, "draft_doubt", "0.3", NUMBER), (fs.Method, "verify_doubt", True, NUMBER),
    *[(fs.Method, "reuse", value, FLAG) for value in ("no", 0)],
    *[(write, "prompt", value, LIST)
      for value in (b"def", [1.0, 2.0], 5, ["def"], [[1, 2], [3, 4]], {1: 2}, torch.ones(3), torch.tensor(3), iter(PROMPT))],
    *[(write, "stop", value, LIST) for value in ("\n", [1.5], b"\n", np.array(3))],
    (write, "prompt", None, STRING), (write, "method", 3, STRING), (write, "sampling", 0.7, "Sampling"),
    (write, "k", 2.5, WHOLE), (write, "max_new_tokens", "9", WHOLE),
    (lambda models: fs.generate(models, PROMPT), "models", "reference", "Models"),
    *[(lambda stages: fs.decode(stages, PROMPT), "stages", value, "a list of Stage") for value in (None, ["target"])],
    *[(lambda prompt: fs.decode(stages(), prompt), "prompt", value, LIST) for value in ("def", [0.5])],
    (lambda limits: fs.decode(stages(), PROMPT, limits), "limits", 20, "Limits"),
    (lambda method: fs.build(method, duo()), "method", "dense", "Method"),
    (lambda models: fs.build(fs.Method(), models), "models", duo().target, "Models"),
    *[(lambda context: fs.build(fs.Method(), duo(), context=context), "context", value, WHOLE) for value in ("64", 64.0)],
    *[(fs.load, "target", value, PATH) for value in (3, None)],
    *[(fs.load, name, value, STRING) for name, value in (("dtype", torch.float32), ("device", 0), ("weights", None))],
    (fs.load, "draft", [1], "strings"),
    (fs.Transformer, "config", {"layers": 2}, "ModelConfig"), (fs.Transformer.load, "folder", 1, PATH),
    (fs.FlashHead.build, "weight", [[1.0]], "Tensor"), (head, "clusters", 4, "Clusters"), (head, "best", "yes", FLAG),
    *[(head, name, value, WHOLE) for name, value in (("cluster_size", 2.5), ("probes", "8"), ("seed", None))],
    *[(head, "always", value, LIST) for value in ((1.5,), "12")],
    (lambda weight: fs.DenseHead(None, weight), "weight", 1, "Tensor or Packed"),
    (lambda norm: fs.DenseHead(norm, torch.ones(8, 8)), "norm", torch.ones(8), "Callable"),
    (lambda path: fs.FlashHead.load(path, torch.ones(8, 8)), "path", 3, "Path or a string"),
    (lambda weight: fs.FlashHead.load("x", weight), "weight", None, "Tensor"),
    (lambda probes: head().with_probes(probes), "probes", None, WHOLE),
    *[(lambda sampling, kind=kind: kind(sampling, 61), "sampling", 0.7, "Sampling") for kind in RULES],
    *[(lambda vocab_size, kind=kind: kind(fs.Sampling(), vocab_size), "vocab_size", "61", WHOLE) for kind in RULES],
]  # fmt: skip


@pytest.mark.parametrize(("call", "name", "value", "words"), WRONG, ids=lambda v: v if isinstance(v, str) else None)
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
    (lambda: fs.Sampling(rule="hope"), "rule 'hope' is unknown; known: coupling"),
])  # fmt: skip


def test_whole_numbers_and_lists_of_other_libraries_are_as_good():
    expected = write(k=2, stop=(5,), prompt=PROMPT).tokens
    same = {"k": np.int64(2), "stop": {5}, "max_new_tokens": np.int32(3), "sampling": fs.Sampling(0, seed=np.int64(0))}
    for prompt in (tuple(PROMPT), np.array(PROMPT), torch.tensor(PROMPT)):
        assert write(**same, prompt=prompt).tokens == expected
    assert fs.Sampling(np.float32(0.5)) == fs.Sampling(0.5)
    assert fs.build(fs.Method(exits=[2]), duo(), context=np.int64(32))[0].reader.context == 32
    assert fs.Method(exits=[2, 4]) == fs.Method(exits=torch.tensor([2, 4])) == fs.Method(exits=(2, 4))
    assert len({fs.Limits(stop=[5]), fs.Limits(stop=np.array([5])), fs.Limits(stop=(5,))}) == 1

    @typed
    def call(one: int, two, *, three: list[str] | None = None):
        return one, two, three

    assert call(1, object, three=None)[0] == 1 and call(1, "2", three=["a"])[2] == ["a"]
    refused("three must be a list of a string or None, got 'a'", call, 1, "2", three="a")
    refused("context must be at least 1, got 0", fs.build, fs.Method(), duo(), context=0)

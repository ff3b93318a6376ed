"""Static buffers, recorded or not, write, score and decide what the loop does, token for token and score for score.

What CUDA records is repeated without Python: nothing in it waits, and nothing that it reads is ever given back.
"""

import copy
import gc
import weakref
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from test_counts import Watch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from toys import PROMPT, duo

from flashspec import Limits, Models, decode
from flashspec.decoding import cascade, ways
from flashspec.decoding.method import build, method_named
from flashspec.decoding.rules import rule_for
from flashspec.decoding.stages import scripted
from flashspec.decoding.ways import CapturedBurst, CapturedScore, fastest
from flashspec.models import engine as graphs
from flashspec.models import synthetic
from flashspec.models.config import ModelConfig
from flashspec.models.engine import Replay
from flashspec.models.packed import PackedLinear
from flashspec.models.reader import SpanReader
from flashspec.sampling import Sampling

TINY = ModelConfig(
    family="qwen3", vocab_size=512, hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, head_dim=32, context=256, tied=False
)
SAMPLINGS = {
    "greedy": Sampling(),
    "coupling": Sampling(0.7, top_k=20, seed=5),
    "speculative": Sampling(1.0, top_p=0.9, seed=2**63 + 6, rule="speculative"),
}
NAMES = ("dense", "flash", "preview", "hispec", "hispec_flash", "cascade", "baseline")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
CASES = [
    pytest.param(name, sampling, where, marks=gpu if where == "cuda" else ())
    for name in NAMES
    for sampling in SAMPLINGS
    for where in ("eager", "taped", "cuda")
    if where != "taped" or name == "dense" or sampling == "speculative"
]
sampled = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
WAITS = {
    "item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "bincount", "_unique2", "lift_fresh",
    "argwhere", "unique_consecutive",
}  # fmt: skip


class Tape(TorchDispatchMode):
    """A CUDA graph's stand-in: records the operations of a call and repeats them, without Python, on the tensors they ran on.

    It refuses what would wait for the device or copy from the host, and keeps nothing alive but what the call itself made.
    """

    def __init__(self):
        super().__init__()
        self.steps, self.made = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, masked = (args, kwargs or {}), any(getattr(t, "dtype", None) is torch.bool for t in tree_leaves(args[1:2]))
        waits = func.overloadpacket.__name__ in WAITS or (func.overloadpacket.__name__ == "index" and masked)
        assert not waits, f"{func} waits for the device or reads the host while a graph is recorded"
        result = func(*args, **given[1])
        self.steps.append((func, tree_map_only(Tensor, weakref.ref, given), result))
        known = {id(t) for t in tree_leaves(given)}
        self.made |= {id(t): t for t in tree_leaves(result) if isinstance(t, Tensor) and id(t) not in known}
        return result

    def replay(self):
        for func, given, result in self.steps:
            args, kwargs = tree_map_only(weakref.ref, alive, given)
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and id(old) in self.made and not shared(old, tree_leaves((args, kwargs))):
                    old.copy_(new)


def alive(held):
    tensor = held()
    assert tensor is not None, "a replay reads memory that was given back"
    return tensor


def shared(tensor, others):
    place = tensor.untyped_storage().data_ptr()
    return any(isinstance(other, Tensor) and other.untyped_storage().data_ptr() == place for other in others)


def taped(call, device):
    for _ in range(2):
        call()
    tape = Tape()
    with tape:
        result = call()
    return tape, result


@pytest.fixture
def tapes(monkeypatch):
    """A Tape records in the place of CUDA; all that were recorded."""
    made = []
    monkeypatch.setattr(graphs, "recorded", lambda *given: made.append(found := taped(*given)) or found)
    return made


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    monkeypatch.setenv(graphs.FLAG, "auto" if torch.cuda.is_available() else "eager")
    monkeypatch.setattr(graphs, "KEYS", 24)


def stages_of(name, sampling=SAMPLINGS["greedy"], where="cpu"):
    pair, changes = duo(0), {} if name == "baseline" else {"k": 3}
    models = Models(*(copy.deepcopy(model).to(where) for model in (pair.target, pair.draft))) if where == "cuda" else pair
    name, changes = ("dense", {**changes, "head": name}) if name == "preview" else (name, changes)
    return build(method_named(name, changes), models, sampling, 64)


def recording(stages, record=True):
    for stage in stages:
        stage.reader.engine.record = record
    return stages


def noting(verb, notes):
    """Bursts, or verifications, of which each is noted, with what the stage's reader has read."""
    return lambda stages, *given: notes.append((copy.deepcopy(found := verb(stages, *given)), stages[0].reader.seen)) or found


def close(mine, theirs):
    return torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9) if isinstance(mine, Tensor) else mine == theirs


def alike(make, finalize="deferred", record=False):
    """Whether static buffers write, score and decide what the loop does, over 24 tokens."""
    told = []
    for way in (fastest, None):
        notes, stages = [], recording(make(), record and way is fastest)
        with pytest.MonkeyPatch.context() as patch:
            for verb in ("write_together", "judge_together"):
                patch.setattr(cascade, verb, noting(getattr(cascade, verb), notes))
            steps = decode([stage._replace(way=way) for stage in stages], PROMPT, Limits(24, (), finalize))
            told.append(tree_leaves([[(step.tokens, step.events) for step in steps], notes]))
    assert len(notes) > 16
    return len(told[0]) == len(told[1]) and all(map(close, *told))


@pytest.mark.parametrize(("name", "sampling", "where"), CASES)
def test_static_buffers_draft_and_judge_as_the_loop_does(name, sampling, where, request):
    stages, sampling = stages_of(name, SAMPLINGS[sampling], where), SAMPLINGS[sampling]
    assert all(isinstance(fastest(stage)[0], CapturedScore) for stage in stages[1:])
    assert isinstance(fastest(stages[0])[1], CapturedBurst)
    tapes = request.getfixturevalue("tapes") if where == "taped" else ()
    ends = ("deferred",) if where == "taped" else ("deferred", "eager")
    assert all(alike(lambda: stages_of(name, sampling, where), end, where != "eager") for end in ends)
    assert (len(tapes) > 2) == (where == "taped")


def test_scripted_rules_and_typical_ones_are_captured_too():
    for make in (
        lambda: scripted(stages_of("dense"), (0.9, 0.5, 0.5)),
        lambda: stages_of("dense", Sampling(1.0, rule="typical")),
    ):
        writer, checker = make()
        assert isinstance(fastest(writer)[1], CapturedBurst) and isinstance(fastest(checker)[0], CapturedScore) and alike(make)


def test_the_control_a_step_at_the_wrong_place_and_another_seed_are_caught(monkeypatch):
    honest = CapturedBurst.step
    with monkeypatch.context() as patch:
        patch.setattr(CapturedBurst, "step", lambda self, n, rows, keys: honest(self, n, rows, 8))
        assert not alike(lambda: stages_of("dense", SAMPLINGS["coupling"]))
    other = rule_for(replace(SAMPLINGS["coupling"], seed=6), 61)
    monkeypatch.setattr(ways, "CapturedBurst", lambda reader, head, rule: CapturedBurst(reader, head, other))
    assert not alike(lambda: stages_of("dense", SAMPLINGS["coupling"]))


@sampled
def test_a_burst_never_waits_and_a_verification_waits_once_and_refuses_nan(sampling, monkeypatch):
    stages, watch = stages_of("dense", sampling), Watch()
    tokens = torch.tensor(PROMPT + [0] * 20)
    with watch:
        drawn, _ = watch.inside("draft", stages[0].write)(tokens, len(PROMPT), 3)
        watch.inside("check", stages[1].judge)(tokens[: len(PROMPT) + 3], len(PROMPT), drawn, 1)
    assert watch.waits["draft"] == 0 and watch.waits["check"] == 1
    monkeypatch.setattr(SpanReader, "rows", property(lambda self: torch.full_like(vars(self)["rows"], torch.nan)), raising=False)
    with pytest.raises(FloatingPointError, match="a model gave NaN logits"):
        stages[1].judge(tokens[: len(PROMPT) + 3], len(PROMPT), drawn, 1)


def test_stages_that_cannot_be_recorded_go_in_turn(monkeypatch):
    doubtful = build(method_named("hispec_adaptive", {}), duo(0), Sampling(), 64)
    lookup = build(method_named("lookup", {}), duo(0), Sampling(), 64)
    assert not any(isinstance(fastest(stages[0])[1], CapturedBurst) for stages in (doubtful, lookup))
    assert all(isinstance(fastest(stage)[0], CapturedScore) for stage in doubtful[:2])
    monkeypatch.setenv(graphs.FLAG, "0")
    plain = stages_of("dense")
    assert fastest(plain[0]) == fastest(plain[1]) == (None, None)


def tokens_of(stages, count=24):
    return [token for step in decode(stages, PROMPT, Limits(count)) for token in step.tokens]


def test_a_second_text_records_nothing(tapes):
    stages = recording(stages_of("dense"))
    first, made = tokens_of(stages), len(tapes)
    gc.collect()
    assert tokens_of(stages) == first and len(tapes) == made > 2


def test_4_bit_layers_in_bfloat16_are_recorded_too(tapes, monkeypatch):
    for module in ("kernels", "kernels.integers", "kernels.scoring"):
        monkeypatch.setattr(import_module(f"flashspec.{module}"), "library", lambda: None)
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    models = Models(synthetic.synthetic("tiny-AWQ"), synthetic.synthetic("tiny", depth=2))
    assert isinstance(models.target.layers[0].mlp.down, PackedLinear)
    for name in ("dense", "flash"):
        plain, taped = (build(method_named("dense", {"k": 3, "head": name}), models, Sampling(), 64) for _ in range(2))
        wanted = tokens_of(recording(plain, False), 12)
        assert not tapes and tokens_of(recording(taped), 12) == wanted and len(tapes) > 2
        tapes.clear()


def test_the_control_a_recording_that_forgets_what_it_reads_is_caught(tapes, monkeypatch):
    honest = Replay.__init__

    def forgetful(self, call, device):
        honest(self, call, device)
        del self.call

    monkeypatch.setattr(Replay, "__init__", forgetful)
    with pytest.raises(AssertionError, match="memory that was given back"):
        tokens_of(recording(stages_of("dense")))


@pytest.mark.parametrize("wait", [lambda x: int(x.sum()), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])])
def test_the_control_a_call_that_waits_or_reads_the_host_cannot_be_recorded(wait):
    rows = torch.ones(3)
    with pytest.raises(AssertionError, match="waits for the device or reads the host"):
        taped(lambda: wait(rows), rows.device)

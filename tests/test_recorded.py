"""What CUDA records is repeated without Python: nothing in it waits, and nothing that it reads is ever given back."""

import gc
import weakref
from importlib import import_module

import pytest
import torch
from test_captured import SAMPLINGS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from toys import PROMPT, duo

from flashspec import Limits, Models, Sampling, decode
from flashspec.decoding.method import build, method_named
from flashspec.decoding.ways import CapturedBurst, CapturedScore
from flashspec.models import graphs, synthetic
from flashspec.models.config import ModelConfig
from flashspec.models.graphs import Replay
from flashspec.models.packed import PackedLinear

TINY = ModelConfig(
    family="qwen3", vocab_size=512, hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, head_dim=32, context=256, tied=False
)
NAMES = ("dense", "flash", "preview", "hispec", "cascade", "baseline")
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


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    tapes = []

    def recorded(call, device):
        tape, result = taped(call, device)
        tapes.append(tape)
        return tape, result

    monkeypatch.setenv(graphs.FLAG, "eager")
    monkeypatch.setattr(graphs, "KEYS", 24)
    monkeypatch.setattr(graphs, "recorded", recorded)
    yield tapes


def stages_of(name, sampling, record):
    changes = {} if name == "baseline" else {"k": 3}
    if name == "preview":
        name, changes = "dense", changes | {"head": name}
    return switched(build(method_named(name, changes), duo(0), sampling, 64), record)


def switched(stages, record):
    for stage in stages:
        stage.reader.engine.record = record
    return stages


def tokens_of(stages):
    return [token for step in decode(stages, PROMPT, Limits(24)) for token in step.tokens]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_recorded_bursts_and_verifications_write_the_text_of_their_eager_twin(name, sampling, recording):
    stages = stages_of(name, sampling, record=True)
    assert isinstance(stages[0].fast_write, CapturedBurst)
    assert all(isinstance(stage.fast_score, CapturedScore) for stage in stages[1:])
    wanted = tokens_of(stages_of(name, sampling, record=False))
    assert not recording and tokens_of(stages) == wanted and len(recording) > 2
    made = len(recording)
    gc.collect()
    assert tokens_of(stages) == wanted and len(recording) == made


def test_4_bit_layers_in_bfloat16_are_recorded_too(recording, monkeypatch):
    for module in ("kernels", "kernels.integers", "kernels.scoring"):
        monkeypatch.setattr(import_module(f"flashspec.{module}"), "library", lambda: None)
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    models = Models(synthetic.synthetic("tiny-AWQ"), synthetic.synthetic("tiny", depth=2))
    assert isinstance(models.target.layers[0].mlp.down, PackedLinear)
    for name in ("dense", "flash"):
        method = method_named("dense", {"k": 3, "head": name})
        wanted, found = (tokens_of(switched(build(method, models, Sampling(), 64), record)) for record in (False, True))
        assert found == wanted and len(recording) > 2
        recording.clear()


def test_the_control_a_recording_that_forgets_what_it_reads_is_caught(monkeypatch):
    honest = Replay.__init__

    def forgetful(self, call, device):
        honest(self, call, device)
        del self.call

    monkeypatch.setattr(Replay, "__init__", forgetful)
    with pytest.raises(AssertionError, match="memory that was given back"):
        tokens_of(stages_of("dense", Sampling(), record=True))


@pytest.mark.parametrize("wait", [lambda x: int(x.sum()), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])])
def test_the_control_a_call_that_waits_or_reads_the_host_cannot_be_recorded(wait):
    rows = torch.ones(3)
    with pytest.raises(AssertionError, match="waits for the device or reads the host"):
        taped(lambda: wait(rows), rows.device)

"""What CUDA records is repeated without Python: nothing in it waits, and nothing that it reads is ever given back."""

import gc
from importlib import import_module

import pytest
import torch
from tape import Tape, taped
from toys import PROMPT, duo

from flashspec import Limits, Models, Sampling, decode
from flashspec.decoding.captured import CapturedBurst, CapturedScore
from flashspec.decoding.method import build, method_named
from flashspec.models import graphs, synthetic
from flashspec.models.awq import Int4Linear
from flashspec.models.graphs import Replay
from flashspec.study.real_shapes import TINY

NAMES = ("dense", "flash", "flash_best", "preview", "hispec", "cascade", "baseline")
SAMPLINGS = {
    "greedy": Sampling(),
    "coupling": Sampling(0.7, top_k=20, seed=5),
    "speculative": Sampling(1.0, top_p=0.9, seed=6, rule="speculative"),
}


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    tapes = list[Tape]()

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
    if name in ("flash_best", "preview"):
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
    assert isinstance(stages[0].write, CapturedBurst)
    assert all(isinstance(stage.judge.score, CapturedScore) for stage in stages[1:])
    wanted = tokens_of(stages_of(name, sampling, record=False))
    assert not recording and tokens_of(stages) == wanted and len(recording) > 2
    made = len(recording)
    gc.collect()
    assert tokens_of(stages) == wanted and len(recording) == made


def test_4_bit_layers_in_bfloat16_are_recorded_too(recording, monkeypatch):
    for module in ("kernels", "kernels.scoring", "kernels.verdicts"):  # compiled kernels are no operations of torch
        monkeypatch.setattr(import_module(f"flashspec.{module}"), "library", lambda: None)
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    models = Models(synthetic.synthetic("tiny-AWQ"), synthetic.synthetic("tiny", depth=2))
    assert isinstance(models.target.layers[0].mlp.down, Int4Linear)
    for name in ("dense", "flash_best"):
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


def test_a_replay_reads_its_inputs_anew_and_repeats_no_python():
    rows, calls = torch.arange(3.0), list[int]()

    def call():
        calls.append(1)
        return (rows * 2).add_(1)

    replay = Replay(call, rows.device)
    assert replay().tolist() == [1, 3, 5] and len(calls) == 3
    rows += 1
    assert replay().tolist() == [3, 5, 7] and len(calls) == 3

"""An interrupt at any point leaves models and stages such that the next run prints the text of fresh objects."""

import functools
import hashlib
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import PROMPT, duo, headed

from flashspec import Models, Sampling, kernels
from flashspec.decoding import cascade
from flashspec.decoding.generate import request
from flashspec.decoding.ways import CompiledBurst
from flashspec.models.graphs import FixedEngine

HOOKS = {
    "decoding.cascade": "draft check promoted finalize", "decoding.state": "State.learn",
    "kernels": "Writer.__call__ Writer.check",
    "decoding.stages": "StepByStep.__call__ InTurn.__call__ Judging.__call__", "models.graphs": "FixedEngine.run",
    "decoding.ways": "CompiledBurst.__call__ CompiledScore.__call__", "models.transformer": "Layer.forward",
    "decoding.captured": "CapturedBurst.__call__ CapturedScore.__call__ Track.take Track.run",
    "models.reader": "SpanReader.read SpanReader.advance SpanReader.rewind", "heads.dense": "DenseHead.__call__",
    "models.engine": "TorchEngine.run KernelEngine.run Slot.write", "heads.flash": "FlashHead.__call__",
    "decoding.rules": "GumbelCoupling.draw GumbelCoupling.verify SpeculativeSampling.verify",
}  # fmt: skip


class Fuse:
    """Raises KeyboardInterrupt at the n-th passage of a hook, going in or coming out."""

    left = 0

    def burn(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def around(self, method):
        @functools.wraps(method)
        def guarded(*args, **named):
            self.burn()
            result = method(*args, **named)
            self.burn()
            return result

        return guarded


@pytest.fixture
def fuse(monkeypatch):
    made = Fuse()
    for room, names in HOOKS.items():
        for name in names.split():
            hook = f"flashspec.{room}.{name}"
            monkeypatch.setattr(hook, made.around(pkgutil.resolve_name(hook)))
    return made


def digest(models):
    found = hashlib.sha256()
    for model in (models.target, models.draft):
        found.update(repr((model.config, len(model.layers), model.training)).encode())
        for name, tensor in model.state_dict().items():
            found.update(name.encode() + tensor.float().numpy().tobytes())
    return found.hexdigest()


@functools.cache
def wide():
    pair = duo(0, torch.float32, vocab_size=64)
    return headed(Models(pair.target, pair.draft))


def prepare(models, name, rule="coupling", tokens=9, **fields):
    options = {"max_new_tokens": tokens, "stop": (), "finalize": "eager", "k": 2, **fields}
    return request(models, PROMPT, name, Sampling(1.5, seed=7, rule=rule), options)


def play(ready):
    return list(ready.steps())


def survives(fuse, models, name, point, **options):
    """Interrupt at this hook point, then decode on the same stages and on the same models."""
    fuse.left = 0
    fresh, before = play(prepare(models, name, **options)), digest(models)
    ready = prepare(models, name, **options)
    fuse.left = point
    with pytest.raises(KeyboardInterrupt):
        play(ready)
    fuse.left = 0
    return play(ready) == fresh == play(prepare(models, name, **options)) and digest(models) == before


def passages(fuse, models, name, **options):
    ready = prepare(models, name, **options)
    fuse.left = 0
    play(ready)
    return -fuse.left


CASES = {
    "spans": (duo, "hispec_flash", {}, lambda points: [*range(1, 21), 33, 60, 101, 150]),
    "odd vocabulary": (lambda: duo(0, torch.float32), "dense", {}, lambda points: range(1, 21)),
    **{
        f"kernels, {name}, {rule}": (wide, name, {"rule": rule, "tokens": 5}, lambda points: range(1, points + 1))
        for name in ("dense", "flash")
        for rule in ("coupling", "speculative")
    },
    "learning": (duo, "dense", {"head": "in_context", "shortlist": 16}, lambda points: range(1, points + 1, 5)),
    "static, dense": (duo, "dense", {"tokens": 5}, lambda points: range(1, points + 1, 3)),
    "static, spans": (duo, "hispec_flash", {"tokens": 5}, lambda points: range(1, points + 1, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupt_at_a_hook_leaves_no_trace(case, fuse, monkeypatch):
    made, name, options, chosen = CASES[case]
    if case.startswith("kernels") and not kernels.available():
        pytest.skip("no C compiler on this machine")
    monkeypatch.setenv("FLASHSPEC_GRAPHS", "eager" if case.startswith("static") else "0")
    draft = prepare(made(), name, **options).stages[0]
    found = isinstance(draft.write, CompiledBurst), isinstance(draft.reader.engine, FixedEngine)
    assert found == (case.startswith("kernels"), case.startswith("static"))
    points = passages(fuse, made(), name, **options)
    assert points > 20 and all(survives(fuse, made(), name, point, **options) for point in chosen(points))


def at_bytecodes(which):
    if not kernels.available():
        pytest.skip("no C compiler on this machine")
    script = Path(__file__).with_name("bytecodes.py")
    return subprocess.run([sys.executable, "-W", "ignore", script, which], capture_output=True, text=True)


def test_interrupts_at_bytecodes_leave_no_trace():
    assert at_bytecodes("random").stdout == "200\n"

    assert int(at_bytecodes("growing").stdout) > 300
    assert at_bytecodes("early").returncode == -signal.SIGSEGV


def test_the_control_a_model_left_truncated_is_caught(fuse, monkeypatch):
    def shortening(state, draft=cascade.draft):
        model = state.stages[-1].reader.model
        model.layers, whole = model.layers[:2], model.layers
        result = draft(state)
        model.layers = whole
        return result

    monkeypatch.setattr(cascade, "draft", shortening)
    models = Models(duo(1).target, duo(1).draft)
    whole = models.target.layers
    try:
        before = digest(models)
        fuse.left = 8
        with pytest.raises(KeyboardInterrupt):
            play(prepare(models, "dense"))
        fuse.left = 0
        assert digest(models) != before
    finally:
        models.target.layers = whole

"""An interrupt at any point leaves models and stages such that the next run prints the text of fresh objects.

Run as a script, since a crash ends the process, this interrupts decodes at bytecodes and prints how often: `random`, two hundred
anywhere; `growing`, at each of the calls that grow a buffer; `early`, at those, with a buffer's size noted before it is there.
"""

import ctypes
import functools
import hashlib
import pkgutil
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import PROMPT, duo, headed

import flashspec
from flashspec import Models, Sampling, kernels
from flashspec.decoding import cascade
from flashspec.decoding.generate import request
from flashspec.decoding.ways import CompiledBurst
from flashspec.kernels import Writer
from flashspec.kernels.build import compiled
from flashspec.models.engine import KernelEngine
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
    ready, fuse.left = prepare(made(), name, **options), 0
    draft = ready.stages[0]
    found = isinstance(draft.write, CompiledBurst), isinstance(draft.reader.engine, FixedEngine)
    assert found == (case.startswith("kernels"), case.startswith("static"))
    play(ready)
    points = -fuse.left
    assert points > 20 and all(survives(fuse, made(), name, point, **options) for point in chosen(points))


def at_bytecodes(which):
    if not kernels.available():
        pytest.skip("no C compiler on this machine")
    return subprocess.run([sys.executable, "-W", "ignore", __file__, which], capture_output=True, text=True)


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


PACKAGE = str(Path(flashspec.__file__).parent)
NAMES = ("dense", "flash", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "lookup", "cascade")


class Tracer:
    """Counts the bytecodes of the package, or of one function, and interrupts at the one after `left` of them."""

    def __init__(self, left=-1, only=None):
        self.left, self.only, self.passed = left, only, 0

    def __call__(self, frame, event, _):
        mine = frame.f_code is self.only if self.only else frame.f_code.co_filename.startswith(PACKAGE)
        frame.f_trace_opcodes = mine
        if mine and event == "opcode":
            self.passed += 1
            if self.passed == self.left + 1:
                raise KeyboardInterrupt
        return self if mine else None


def traced(ready, tracer):
    sys.settrace(tracer)
    try:
        play(ready)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def length(name, rule, only=None):
    tracer = Tracer(only=only)
    traced(prepare(wide(), name, rule), tracer)
    return tracer.passed


@functools.cache
def text_of(name, rule):
    return play(prepare(wide(), name, rule))


def outlives(name, rule, tracer):
    ready, fresh = prepare(wide(), name, rule), text_of(name, rule)
    interrupted = traced(ready, tracer)
    assert play(ready) == fresh, (name, rule, tracer.left)
    return int(interrupted)


def anywhere():
    dice, before = random.Random(0), digest(wide())
    kinds = [(name, rule) for name in NAMES for rule in ("coupling", "speculative")]
    lengths = {kind: [length(*kind) for _ in range(2)][1] for kind in kinds}
    kinds = [kinds[i % len(kinds)] for i in range(200)]
    found = sum(outlives(*kind, Tracer(dice.randrange(lengths[kind]))) for kind in kinds)
    assert digest(wide()) == before
    return found


def growing():
    found = 0
    for grows in (KernelEngine.run, Writer._call):
        last = min(400, length("self_speculation", "coupling", grows.__code__))
        found += sum(outlives("self_speculation", "coupling", Tracer(i, grows.__code__)) for i in range(last))
    return found


def early(self, x, start):
    x, threads = (self.model.place(x, start) if self.lowest else x).contiguous(), torch.get_num_threads()
    shape, numbers = ctypes.byref(self._shape), [ctypes.c_int64(n) for n in (len(x), start, threads)]
    if len(x) > getattr(self, "room", 0):
        self.room = len(x)
        self._scratch = torch.empty(compiled().fs_scratch(shape, numbers[0], numbers[2]))
    address, scratch = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(self._scratch.data_ptr())
    compiled().fs_span(shape, self._layers, ctypes.c_int64(self.count), address, *numbers, scratch)
    return x


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "early":
        KernelEngine.run = early
    print(anywhere() if sys.argv[1] == "random" else growing())

"""An interrupt at any bytecode leaves models and stages such that the next run prints the text of fresh objects.

Run as a script, since a crash ends the process, this interrupts decodes at bytecodes and prints how often: anywhere, in the
`kernels`, in `torch` and over `static` buffers; `growing`, at each of the calls that grow a buffer. Two controls are broken:
`early`, which notes a buffer's size before it is there, and `truncated`, which shortens a model while it drafts.
"""

import ctypes
import functools
import hashlib
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from shelf import python
from toys import PROMPT, duo, headed

import flashspec
from flashspec import Models, Sampling, kernels
from flashspec.decoding import cascade
from flashspec.decoding.generate import request
from flashspec.decoding.ways import CompiledBurst
from flashspec.kernels import Writer
from flashspec.kernels.build import call
from flashspec.models.engine import FixedEngine, KernelEngine

PACKAGE = str(Path(flashspec.__file__).parent)
NAMES = ("dense", "flash", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "lookup", "cascade")
LEARNING = {"head": "in_context", "shortlist": 16}


@pytest.mark.parametrize(("which", "least"), [("kernels", 200), ("torch", 60), ("static", 60), ("growing", 300)])
def test_interrupts_at_bytecodes_leave_no_trace(which, least):
    done = at_bytecodes(which)
    assert int(done.stdout or 0) >= least, done.stderr[-2000:]


@pytest.mark.parametrize(("which", "code"), [("early", -signal.SIGSEGV), ("truncated", 1)])
def test_the_control_a_buffer_noted_early_and_a_model_left_truncated_are_caught(which, code):
    assert at_bytecodes(which).returncode == code


def at_bytecodes(which):
    if not kernels.available():
        pytest.skip("no C compiler on this machine")
    return python("-W", "ignore", __file__, which, FLASHSPEC_GRAPHS="eager" if which == "static" else "0")


def digest(models):
    found = hashlib.sha256()
    for model in (models.target, models.draft):
        found.update(repr((model.config, len(model.layers), model.training)).encode())
        for name, tensor in model.state_dict().items():
            found.update(name.encode() + tensor.float().numpy().tobytes())
    return found.hexdigest()


@functools.cache
def models(where):
    pair = duo(0, torch.float32, vocab_size=64) if where == "kernels" else duo()
    return headed(Models(pair.target, pair.draft))


def prepare(where, name, rule):
    fields = {"max_new_tokens": 9, "stop": (), "finalize": "eager", "k": 2, **(LEARNING if name == "learning" else {})}
    method = "dense" if name == "learning" else name
    return request(models(where), PROMPT, method, Sampling(1.5, seed=7, rule=rule), fields)


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
        list(ready.steps())
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def length(kind, only=None):
    tracer = Tracer(only=only)
    traced(prepare(*kind), tracer)
    return tracer.passed


@functools.cache
def text_of(kind):
    return list(prepare(*kind).steps())


def outlives(kind, tracer):
    ready, fresh = prepare(*kind), text_of(kind)
    interrupted = traced(ready, tracer)
    assert list(ready.steps()) == fresh, (kind, tracer.left)
    return int(interrupted)


def anywhere(where, times):
    dice, before, draft = random.Random(0), digest(models(where)), prepare(where, "dense", "coupling").stages[0]
    found = isinstance(draft.fast_write, CompiledBurst), isinstance(draft.reader.engine, FixedEngine)
    assert found == (where == "kernels", where == "static")
    kinds = [(where, name, rule) for name in (*NAMES, "learning") for rule in ("coupling", "speculative")]
    lengths = {kind: [length(kind) for _ in range(2)][1] for kind in kinds}
    kinds = [kinds[i % len(kinds)] for i in range(times)]
    found = sum(outlives(kind, Tracer(dice.randrange(lengths[kind]))) for kind in kinds)
    assert digest(models(where)) == before
    return found


def growing():
    found, kind = 0, ("kernels", "self_speculation", "coupling")
    for grows in (KernelEngine._carry, Writer._call):
        last = min(400, length(kind, grows.__code__))
        found += sum(outlives(kind, Tracer(i, grows.__code__)) for i in range(last))
    return found


def early(self, x, start, *places):
    x, threads = x.contiguous(), torch.get_num_threads()
    shape = ctypes.byref(self._shape)
    if len(x) > getattr(self, "room", 0):
        self.room = len(x)
        self._scratch = torch.empty(call("fs_scratch", shape, len(x), threads))
    call("fs_span", shape, self._layers, self.count, x, len(x), start, *places or (None,) * 3, threads, self._scratch)
    return x


def shortening(states, draft=cascade.draft):
    model = states[0].stages[-1].reader.model
    model.layers, whole = model.layers[:2], model.layers
    result = draft(states)
    model.layers = whole
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    which = sys.argv[1]
    if which == "early":
        KernelEngine._carry = early
    if which == "truncated":
        cascade.draft, which = shortening, "torch"
    print(growing() if which in ("early", "growing") else anywhere(which, 200 if which == "kernels" else 60))

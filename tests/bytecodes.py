"""Interrupts at chosen bytecodes, run as a script, since a crash ends the process; prints how many decodes were interrupted.

`random`: two hundred anywhere; `growing`: at each of the calls that grow a buffer; `early`: those, with a size noted too early.
"""

import ctypes
import functools
import random
import sys
from pathlib import Path

import torch
from test_interrupts import digest, play, prepare, wide

import flashspec
from flashspec.kernels import Writer
from flashspec.kernels.build import compiled
from flashspec.models.engine import KernelEngine

PACKAGE = str(Path(flashspec.__file__).parent)
NAMES = ("dense", "flash", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "lookup", "cascade")
TRIES = 200


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


def survives(name, rule, tracer):
    ready, fresh = prepare(wide(), name, rule), text_of(name, rule)
    interrupted = traced(ready, tracer)
    assert play(ready) == fresh, (name, rule, tracer.left)
    return int(interrupted)


def anywhere():
    dice, before = random.Random(0), digest(wide())
    kinds = [(name, rule) for name in NAMES for rule in ("coupling", "speculative")]
    lengths = {kind: [length(*kind) for _ in range(2)][1] for kind in kinds}
    kinds = [kinds[i % len(kinds)] for i in range(TRIES)]
    found = sum(survives(*kind, Tracer(dice.randrange(lengths[kind]))) for kind in kinds)
    assert digest(wide()) == before
    return found


def growing():
    found = 0
    for grows in (KernelEngine.run, Writer._call):
        last = min(400, length("self_speculation", "coupling", grows.__code__))
        found += sum(survives("self_speculation", "coupling", Tracer(i, grows.__code__)) for i in range(last))
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

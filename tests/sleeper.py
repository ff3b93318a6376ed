"""Something to sweep over: arithmetic after a nap, as an experiment and as a notebook, that fails in the way it is told to."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trouble import ipynb, troubled

from flashspec.study import Experiment

TESTS = Path(__file__).resolve().parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
SWEEP = [sys.executable, "-m", "flashspec.cli.main", "sweep"]
NAMES = {"experiment": "sleeper:EXPERIMENT", "notebook": "nap.ipynb"}


@dataclass(frozen=True)
class Params:
    k: tuple[int, ...] = (1,)  # points
    head: str = "dense"
    temperature: float = 0.0
    nap: float = 0.0  # seconds
    fail: str = ""  # "error", "die" or "hang"


@dataclass(frozen=True)
class Row:
    k: int
    value: float


def measure(params: Params) -> Iterator[Row]:
    """Arithmetic of a point."""
    troubled(params.nap, params.fail)
    for k in params.k:
        yield Row(k, k / 3 + params.temperature)


EXPERIMENT = Experiment("sleeper", Params, Row, measure, measured=False)
TIMED = replace(EXPERIMENT, name="timed", measured=True)

CELLS = [
    'k: int = 1  # points\nhead: str = "dense"\ntemperature: float = 0.0\nnap: float = 0.0\nfail: str = ""',
    "from trouble import glued, troubled\n\ntroubled(nap, fail)",
    "glued('value', k / 3 + temperature)",
]


def notebook(folder: Path, *more: str, name: str = "nap.ipynb") -> Path:
    """A notebook of the same parameters that glues the same value."""
    return ipynb(folder / name, *CELLS, *more)


def start(folder: Path, *words: str) -> subprocess.Popen:
    """A sweep's runner at work in a folder; it hears interrupts even where this process ignores them."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*SWEEP, *words], cwd=folder, env=ENV, preexec_fn=heard, **pipes)


def sweep(folder: Path, *words: str, limit: float = 600) -> tuple[int, str]:
    """Status and words of a sweep."""
    runner = start(folder, *words)
    out, said = runner.communicate(timeout=limit)
    return runner.returncode, out + said

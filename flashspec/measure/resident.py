"""How much anonymous memory a fresh process takes while it loads a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, NamedTuple

CHILD = """
import sys, torch
from flashspec.models.transformer import Transformer
print("ready", flush=True)
sys.stdin.readline()
model = Transformer.load(sys.argv[1], weights=sys.argv[2])
print("loaded", flush=True)
sys.stdin.readline()
"""
EVERY = 0.002


class Load(NamedTuple):
    """Bytes of anonymous memory before loading, at its peak and after it, and the seconds it took."""

    before: int
    peak: int
    after: int
    seconds: float


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process (RssAnon), file-backed pages left out; ValueError where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        raise ValueError("anonymous memory is read from /proc/PID/status, which this system does not have; use Linux") from None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def load_in_fresh_process(folder: Path, weights: str) -> Load:
    """Load a checkpoint in a process of its own, watched from here; ValueError with its last words where it fails."""
    command = [sys.executable, "-c", CHILD, str(folder), weights]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout and child.stderr
        _await(child.stdout, "ready", child.stderr)
        before, start = anonymous_bytes(child.pid), time.perf_counter()
        with Watch(child.pid) as watch:
            child.stdin.write("\n")
            child.stdin.flush()
            _await(child.stdout, "loaded", child.stderr)
            seconds = time.perf_counter() - start
        after = anonymous_bytes(child.pid)
        child.communicate("\n")
    return Load(before, max(watch.peak, after), after, seconds)


def _await(stream: IO[str], word: str, errors: IO[str]) -> None:
    if stream.readline().strip() != word:
        last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"the loading process failed: {last}")


class Watch:
    """Samples a process's anonymous memory while it is open."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self._done = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._done.wait(EVERY):
            self.peak = max(self.peak, anonymous_bytes(self.pid))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

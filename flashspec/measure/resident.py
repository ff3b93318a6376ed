"""How much anonymous memory a fresh process takes while it loads a checkpoint."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

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
    """Anonymous resident memory of a process (RssAnon); ValueError where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        raise ValueError("anonymous memory is read from /proc/PID/status, which this system does not have; use Linux") from None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def load_in_fresh_process(folder: Path, weights: str) -> Load:
    """Load a checkpoint in a process of its own; ValueError with its last words where it fails."""
    command, pipe = [sys.executable, "-c", CHILD, str(folder), weights], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        _watched(child, "ready")
        before, start = anonymous_bytes(child.pid), time.perf_counter()
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
        peak = _watched(child, "loaded")
        seconds, after = time.perf_counter() - start, anonymous_bytes(child.pid)
        child.communicate("\n")
    return Load(before, max(peak, after), after, seconds)


def _watched(child: subprocess.Popen, word: str) -> int:
    """The most anonymous bytes that the child holds until it says this word."""
    assert child.stdout and child.stderr
    peak = 0
    while not select.select([child.stdout], [], [], EVERY)[0]:
        peak = max(peak, anonymous_bytes(child.pid))
    if child.stdout.readline().strip() != word:
        last = (child.stderr.read().strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"the loading process failed: {last}")
    return peak

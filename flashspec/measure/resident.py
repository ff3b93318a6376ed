"""How much anonymous memory a fresh process takes while it loads a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

CHILD = """
import sys, time
from flashspec.measure.resident import anonymous_bytes
from flashspec.models.transformer import Transformer
before, start = anonymous_bytes("self"), time.perf_counter()
model = Transformer.load(sys.argv[1], weights=sys.argv[2])
print(before, anonymous_bytes("self"), time.perf_counter() - start)
"""
EVERY = 0.002


class Load(NamedTuple):
    """Bytes of anonymous memory before loading, at its peak and after it, and the seconds it took."""

    before: int
    peak: int
    after: int
    seconds: float


def anonymous_bytes(process: int | str) -> int:
    """Anonymous resident memory of a process (RssAnon); ValueError where there is no /proc."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        raise ValueError("anonymous memory is read from /proc/PID/status, which this system does not have; use Linux") from None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def load_in_fresh_process(folder: Path, weights: str) -> Load:
    """Load a checkpoint in a process of its own; ValueError with its last words where it fails."""
    command, pipe, peak = [sys.executable, "-c", CHILD, str(folder), weights], subprocess.PIPE, 0
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(EVERY)
        said, error = child.communicate()
    if child.returncode:
        raise ValueError(f"the loading process failed: {(error.strip().splitlines() or ['it said nothing'])[-1]}")
    before, after, seconds = said.split()
    return Load(int(before), max(peak, int(after)), int(after), float(seconds))

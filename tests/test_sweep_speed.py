"""What a sweep costs beside its points: 200 of them over four processes, measured only where FLASHSPEC_SPEED is set."""

import os
import time

import pytest
from sleeper import NAMES, notebook, sweep

pytestmark = pytest.mark.skipif("FLASHSPEC_SPEED" not in os.environ, reason="a measurement, for a quiet machine")
POINTS, NAP, WORKERS = 200, 0.5, 4
COSTS = {"experiment": 0.3, "notebook": 2.0}  # seconds a point beside its nap


def timed(folder, name, workers, out="out"):
    started = time.monotonic()
    grid = ("-p", f"k=1..{POINTS}", "-p", f"nap={NAP}", "--workers", str(workers), "--out", out)
    status, said = sweep(folder, name, *grid, limit=3000)
    assert status == 0, said
    return time.monotonic() - started


@pytest.mark.parametrize("kind", NAMES)
def test_a_point_costs_little_and_a_finished_sweep_less(kind, tmp_path):
    notebook(tmp_path)
    four, again = timed(tmp_path, NAMES[kind], WORKERS), timed(tmp_path, NAMES[kind], WORKERS)
    cost = four / POINTS - NAP / WORKERS
    print(f"{kind}: {four:.1f} s for {POINTS} points, {cost:.3f} s a point beside its nap; again {again:.2f} s")
    assert cost <= COSTS[kind] and again <= 3


def test_four_processes_are_three_times_as_fast_as_one(tmp_path):
    one, four = (timed(tmp_path, NAMES["experiment"], workers, str(workers)) for workers in (1, WORKERS))
    print(f"one process {one:.1f} s, four {four:.1f} s: {one / four:.2f} times")
    assert one / four >= 3

"""kill -9 of runner, worker or kernel at any moment: the same command again gives the table of an undisturbed run.

Where FLASHSPEC_SPEED is set, on a quiet machine, it is also measured what a sweep costs beside its points.
"""

import os
import random
import signal
import time

import psutil
import pytest
from sleeper import NAMES, notebook, start, sweep

KILLS = int(os.environ.get("FLASHSPEC_KILLS", "3"))
WHO = {"kernel": "ipykernel_launcher", "runner": "flashspec.cli.main", "worker": "flashspec.study.engines"}
GRID = ("-p", "k=1..2", "-p", "temperature=0,1", "-p", "nap=0.1", "--workers", "2", "--out", "out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What undisturbed runs give, and how long they take."""
    found = {}
    for kind, name in NAMES.items():
        folder, started = tmp_path_factory.mktemp(kind), time.monotonic()
        notebook(folder)
        assert sweep(folder, name, *GRID)[0] == 0
        found[kind] = (folder / "out" / "table.csv").read_bytes(), time.monotonic() - started
    return found


def killed(process, who, moment):
    """Kill one of a kind after so many seconds, or as soon as there is one; all that had been started until then."""
    runner = psutil.Process(process.pid)
    time.sleep(moment)
    while process.poll() is None:
        try:
            found = [each for each in (runner, *runner.children(recursive=True)) if each.status() != psutil.STATUS_ZOMBIE]
            there = {each: " ".join(each.cmdline()) for each in found}
        except psutil.Error:
            continue
        if victims := [each for each, words in there.items() if WHO[who] in words]:
            victims[0].kill()
            return list(there)
        time.sleep(0.05)
    return []


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_any_moment_loses_nothing(number, whole, tmp_path):
    dice, who = random.Random(number), list(WHO)[number % len(WHO)]
    kind = "notebook" if who == "kernel" else dice.choice(list(NAMES))
    notebook(tmp_path)
    process = start(tmp_path, NAMES[kind], *GRID)
    there = killed(process, who, dice.uniform(0, whole[kind][1]))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == (-signal.SIGKILL if who == "runner" and there else 0), said
    assert who != "runner" or not psutil.wait_procs(there, timeout=60)[1]  # nothing outlives its runner
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/points/*")}
    status, said = sweep(tmp_path, NAMES[kind], *GRID)
    assert status == 0 and f"4 points, {len(kept)} done" in said
    assert (tmp_path / "out" / "table.csv").read_bytes() == whole[kind][0]
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/points/*")}.items()
    assert not list(tmp_path.glob("out/unfinished/*"))


quiet = pytest.mark.skipif("FLASHSPEC_SPEED" not in os.environ, reason="a measurement, for a quiet machine")
POINTS, NAP, WORKERS = 200, 0.5, 4
COSTS = {"experiment": 0.3, "notebook": 2.0}  # seconds a point beside its nap


def timed(folder, name, workers, out="out"):
    started = time.monotonic()
    grid = ("-p", f"k=1..{POINTS}", "-p", f"nap={NAP}", "--workers", str(workers), "--out", out)
    status, said = sweep(folder, name, *grid, limit=3000)
    assert status == 0, said
    return time.monotonic() - started


@quiet
@pytest.mark.parametrize("kind", NAMES)
def test_a_point_costs_little_and_a_finished_sweep_less(kind, tmp_path):
    notebook(tmp_path)
    four, again = timed(tmp_path, NAMES[kind], WORKERS), timed(tmp_path, NAMES[kind], WORKERS)
    cost = four / POINTS - NAP / WORKERS
    print(f"{kind}: {four:.1f} s for {POINTS} points, {cost:.3f} s a point beside its nap; again {again:.2f} s")
    assert cost <= COSTS[kind] and again <= 3


@quiet
def test_four_processes_are_three_times_as_fast_as_one(tmp_path):
    one, four = (timed(tmp_path, NAMES["experiment"], workers, str(workers)) for workers in (1, WORKERS))
    print(f"one process {one:.1f} s, four {four:.1f} s: {one / four:.2f} times")
    assert one / four >= 3

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


POINTS, NAP = 200, 0.5
COSTS = {"experiment": 0.3, "notebook": 2.0}  # seconds a point beside its nap


@pytest.mark.skipif("FLASHSPEC_SPEED" not in os.environ, reason="a measurement, for a quiet machine")
@pytest.mark.parametrize("kind", NAMES)
def test_a_point_costs_little_a_finished_sweep_less_and_four_processes_are_three_times_as_fast_as_one(kind, tmp_path):
    notebook(tmp_path)
    grid, seconds = ("-p", f"k=1..{POINTS}", "-p", f"nap={NAP}"), []
    for workers in ("4", "4", "1")[: 3 if kind == "experiment" else 2]:
        started = time.monotonic()
        status, said = sweep(tmp_path, NAMES[kind], *grid, "--workers", workers, "--out", workers, limit=3000)
        seconds.append(time.monotonic() - started)
        assert status == 0, said
    four, again, *one = seconds
    print(f"{kind}: {seconds} s for {POINTS} points by four processes, again, and by one")
    assert four / POINTS - NAP / 4 <= COSTS[kind] and again <= 3 and all(each / four >= 3 for each in one)

"""What goes wrong on real machines, tried for real: full and read-only disks, clocks that jump, runners that are killed.

A training run that was stopped and goes on bit by bit is in test_train; a damaged table or origin is in test_tables.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from shelf import python
from test_cli_refusals import full_disk
from test_study import Counted, Params, child

from flashspec import provenance
from flashspec.cli.main import status
from flashspec.kernels.build import compiler
from flashspec.refusals import in_words
from flashspec.study import Refused, run, tables

MANY = Params(tuple(range(1, 41)))
WHOLE = [(block, 0.1 * block) for block in MANY.blocks]


@contextmanager
def mounted(place):
    """A disk of one MiB in this folder until the block ends."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def filled(disk, room=2**16):
    (disk / "other").write_bytes(b"x" * (2**20 - room))
    yield
    (disk / "other").unlink()


@pytest.mark.parametrize(("disk", "full", "said"), [
    (mounted, filled, "No space left on device"),
    (nullcontext, lambda place: full_disk(2048), "File too large"),
])  # fmt: skip
def test_a_full_disk_is_one_sentence_keeps_what_was_measured_and_the_run_goes_on(tmp_path, disk, full, said):
    counted = Counted()
    with disk(tmp_path) as root:
        with full(root), pytest.raises(OSError) as error:
            run(counted.experiment, MANY, root=root)
        assert said in in_words(error.value) and not list(root.rglob("*.parquet")) and not list(root.rglob(".*"))
        kept, measured = len(list(root.glob("*/*.part/*"))), len(counted.calls)
        assert 4 < kept <= measured <= kept + 1  # the last of them found no room
        found = run(counted.experiment, MANY, root=root)
        assert [(row.block, row.time) for row in found.rows] == WHOLE and found.origin["resumed_points"] == kept
        assert counted.calls[measured:] == [*range(kept + 1, 41)] and list(found.path.parent.iterdir()) == [found.path]


def test_a_read_only_folder_is_read_and_refused_before_anything_is_measured(tmp_path, capsys):
    counted = Counted(measured=False)
    with mounted(tmp_path):
        first = run(counted.experiment, MANY, root=tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        counted.calls.clear()
        assert run(counted.experiment, MANY, root=tmp_path).rows == first.rows
        for changes, fresh in (({"blocks": (7,)}, False), (MANY, True)):
            with pytest.raises(OSError) as error:
                run(counted.experiment, changes, fresh=fresh, root=tmp_path)
            assert "Read-only file system" in in_words(error.value) and counted.calls == []
        assert status(["results", "verify", "--results", str(tmp_path)]) == 0
        assert status(["results", "export", str(first.path), str(tmp_path / "out.csv")]) == 2
        assert "\n" not in capsys.readouterr().err.rstrip()


CLOCK = """
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    static long calls;
    long failed = syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += (calls++ % 2 ? 1 : -1) * 300000000L;
    return failed;
}
"""


def test_a_clock_that_jumps_by_years_changes_no_row_and_no_duration(tmp_path, monkeypatch):
    if not (cc := compiler()):
        pytest.skip("no C compiler on this machine")
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run([cc, "-shared", "-fPIC", "-o", str(tmp_path / "clock.so"), str(tmp_path / "clock.c")], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "clock.so"))
    assert python("-c", "import time; print(abs(time.time() - time.time()) > 1e8)").stdout == "True\n"  # the control: it jumps
    assert child(tmp_path, "measuring").wait() == -9
    for point in tmp_path.glob("*/*.part/*"):
        os.utime(point, (2**33, 2**33))
    assert child(tmp_path, "together").communicate()[0] == "1\n"
    (path,) = tmp_path.rglob("*.parquet")
    table, origin = tables.opened(path)
    assert table["block"].to_pylist() == [1, 2, 3] and origin["resumed_points"] == 2 and 0 <= origin["duration_s"] < 60


def runner(root, seed):
    """Another process that measures every key in an order of its own, and keys of which there is nothing to measure."""
    if pid := os.fork():
        return pid
    counted, keys = Counted(), [Params((1, 2, number)) for number in range(3, 9)] + [Params(())] * 6
    slow = replace(counted.experiment, function=lambda params: time.sleep(0.004) or counted.rows(params))
    try:
        for params in random.Random(seed).sample(keys, len(keys)):
            with suppress(Refused):
                run(slow, params, root=root)
        os._exit(0)
    except BaseException:
        os._exit(1)


def kill_runners(root):
    """Twenty times three runners on one store, each killed at a moment of its own; then three that may finish."""
    dice, killed = random.Random(0), 0
    for turn in range(20):
        for pid in [runner(root, 3 * turn + number) for number in range(3)]:
            time.sleep(dice.random() * 0.06)
            os.kill(pid, signal.SIGKILL)
            killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
    last = [runner(root, seed) for seed in range(3)]
    return killed, [os.waitpid(pid, 0)[1] for pid in last]


def test_runners_on_one_store_that_are_killed_at_random_leave_whole_tables_and_lose_none(tmp_path):
    killed, last = json.loads(python("-W", "ignore", __file__, tmp_path).stdout)
    assert killed > 20 and last == [0, 0, 0]
    for number in range(3, 9):
        found = Counted().experiment.stored(Params((1, 2, number)), tmp_path)
        assert [row.block for row in found.rows] == [1, 2, number]
    assert len(list(tmp_path.rglob("*.parquet"))) == 6 and not list(tmp_path.rglob(".*"))


if __name__ == "__main__":
    provenance.source = lambda: {"commit": None, "dirty": None}  # git would take most of the time
    print(json.dumps(kill_runners(Path(sys.argv[1]))))

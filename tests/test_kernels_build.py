"""Nobody but the user can have a library loaded; a damaged one is made anew; what fails says so once, and decoding goes on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashspec.kernels import build

CC = build.compiler()
ROOT = Path(__file__).parents[1]
OTHER = 65534
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root makes files of other users")

PLANT = """#include <stdio.h>
#include "{source}"
__attribute__((constructor)) static void run(void) {{ FILE *f = fopen("{marker}", "a"); if (f) fclose(f); }}
"""
COPIER = """#!/bin/sh
if [ "$1" = --version ]; then echo "copier 1.0"; exit; fi
echo compiled >> {place}/log
while [ "$1" != -o ]; do shift; done
sleep 0.1
cp {place}/real.so "$2"
"""
SERVER = """
import json, os, sys, threading, warnings
import flashspec
from flashspec.cli import doctor
from flashspec.kernels import build

def told(case):
    os.environ.clear()
    os.environ.update(case["env"])
    os.chdir(case["cwd"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        together = [threading.Thread(target=build.library) for _ in range(case["threads"])]
        [thread.start() for thread in together]
        [thread.join() for thread in together]
        built = build.library() is not None
    lines = [doctor.line(finding) for finding in doctor.compilation()]
    return {"built": built, "said": [str(w.message) for w in said], "doctor": lines, "identity": build.identity()}

def forked(case):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, json.dumps(told(case)).encode())
        os._exit(0)
    os.close(theirs)
    return child, ours

for line in sys.stdin:
    case = json.loads(line)
    children = [forked(case) for _ in range(case["processes"])]
    print(json.dumps([[os.waitpid(child, 0)[1], os.fdopen(ours).read()] for child, ours in children]), flush=True)
"""


class World:
    """A folder that every user may enter, and a server that forks processes in it."""

    def __init__(self, place, server):
        self.place, self.server = place, server
        self.cache, self.tmp, self.marker = place / "home/.cache/flashspec", place / "tmp", place / "anyone/marker"

    def ask(self, processes=1, threads=1, **env):
        """What processes with these environment variables (None: unset) tell; each has to end by itself."""
        known = {"PATH": os.environ["PATH"], "HOME": self.place / "home", "TMPDIR": self.tmp, "CC": self.place / "copier"} | env
        case = {"env": {name: str(value) for name, value in known.items() if value is not None}, "cwd": str(self.place)}
        case |= {"threads": threads, "processes": processes}
        print(json.dumps(case), file=self.server.stdin, flush=True)
        ended = json.loads(self.server.stdout.readline())
        assert [status for status, _ in ended] == [0] * processes, "a process was killed or ended with an error"
        return [SimpleNamespace(**json.loads(text)) for _, text in ended]

    def one(self, words="", **case):
        (told,) = self.ask(**case)
        assert told.built and len(told.said) == bool(words) and words in "".join(told.said)
        assert not list(self.tmp.iterdir()) and not list(self.cache.glob("building-*")), "nothing is left behind"
        return told

    @property
    def compilations(self):
        return (self.place / "log").read_text().count("compiled")

    def kept(self):
        (path,) = self.cache.glob("*.so")
        return path

    def plant(self, folder, uid=0):
        """Somebody's library under the name, digest included, that the cache would give to it."""
        self.one()
        name, code = self.kept().name.rpartition("-")[0], (self.place / "plant.so").read_bytes()
        shutil.rmtree(self.cache)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{name}-{hashlib.sha256(code).hexdigest()[:32]}.so"
        path.write_bytes(code)
        path.chmod(0o600)
        for owned in (path, folder):
            os.chown(owned, uid, uid)
        return path

    def compiler(self, script):
        path = self.place / "anyone" / "cc"
        path.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\n{script}\n")
        path.chmod(0o755)
        return path


@pytest.fixture(scope="module")
def started():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / "plant.c").write_text(PLANT.format(source=build.SOURCE, marker=place / "anyone" / "marker"))
        for name, source in {"real": build.SOURCE, "plant": place / "plant.c"}.items():
            subprocess.run([CC, "-O0", *build.FLAGS[1:], "-o", str(place / f"{name}.so"), str(source), "-lm"], check=True)
        (place / "copier").write_text(COPIER.format(place=place))
        (place / "copier").chmod(0o755)
        with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, text=True, stdin=-1, stdout=-1) as server:
            yield World(place, server)
            server.stdin.close()


@pytest.fixture
def world(started):
    for path in started.place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    for name, mode in {"home": 0o700, "anyone": 0o777, "tmp": 0o1777}.items():
        (started.place / name).mkdir()
        (started.place / name).chmod(mode)
    (started.place / "log").write_text("")
    (started.place / "log").chmod(0o666)
    return started


def test_a_library_is_compiled_once_and_kept_for_its_user_alone(world):
    first, second = world.one(), world.one()
    assert world.compilations == 1 and first.identity == second.identity
    assert world.cache.stat().st_mode & 0o777 == 0o700 and not world.kept().stat().st_mode & 0o077
    assert first.identity["compiler"] == "copier 1.0" and "-O3" in first.identity["flags"]
    assert world.ask(FLASHSPEC_KERNELS=0)[0].identity == {"kernels": "torch"}
    world.plant(world.cache)  # the control
    assert world.one() and world.marker.exists()


@pytest.mark.parametrize("env", [{"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "here"}, {"XDG_CACHE_HOME": "", "HOME": "here"}])
def test_no_library_is_looked_for_below_the_working_directory(world, env):
    for folder in ("", "here", "here/.cache"):
        world.plant(world.place / folder / "flashspec")
    assert world.ask(**env)[0].built and not world.marker.exists()


@needs_root
def test_a_folder_of_somebody_else_is_not_used(world):
    shared = world.place / "shared" / "flashspec"
    before = world.plant(shared, OTHER)
    shared.chmod(0o755)
    told = world.one("belongs to another user", XDG_CACHE_HOME=shared.parent)
    assert "XDG_CACHE_HOME" in told.said[0] and not world.marker.exists()
    assert any("kernel cache" in line and "belongs to another user" in line and "to get it" in line for line in told.doctor)
    assert [before] == list(shared.iterdir())


@needs_root
@pytest.mark.parametrize("link_is_theirs", [True, False])
def test_a_link_counts_as_its_owners(world, link_is_theirs):
    world.plant(world.place / "elsewhere")
    world.cache.symlink_to(world.place / "elsewhere")
    os.chown(world.cache, OTHER * link_is_theirs, -1, follow_symlinks=False)
    world.one("belongs to another user" if link_is_theirs else "")
    assert world.marker.exists() != link_is_theirs, "one's own link to one's own folder is trusted, plant and all"


@pytest.mark.parametrize("disguise", ["open to all", "link", "pipe", "folder"])
def test_what_others_could_have_changed_is_not_loaded(world, disguise):
    path = world.plant(world.cache)
    path.chmod(0o666) if disguise == "open to all" else path.unlink()
    make = {"link": lambda: path.symlink_to(world.place / "plant.so"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    make.get(disguise, list)()
    assert world.one() and not world.marker.exists()


@pytest.mark.parametrize("left", [0, 100, 5000, -1])
def test_a_truncated_library_which_would_kill_the_process_that_loads_it_is_made_anew(world, left):
    world.one()
    whole = world.kept().read_bytes()
    world.kept().write_bytes(whole[:left])
    assert world.one() and world.kept().read_bytes() == whole and world.compilations == 2
    (world.place / "anyone" / "cut.so").write_bytes((world.place / "real.so").read_bytes()[:5000])  # the control
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    assert subprocess.run([sys.executable, "-c", load, str(world.place / "anyone" / "cut.so")], stderr=-1).returncode != 0


@pytest.mark.parametrize(("script", "words"), [
    ("echo 'cpu.c:1: error: no such luck' >&2; exit 1", "cpu.c:1: error: no such luck"),
    ("for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 3", "exit status 3\n  line 1\n  line 2"),
    ("kill -9 $$", "killed by signal 9"),
    ("echo nothing > cpu.so; while [ $1 != -o ]; do shift; done; echo nothing > $2", "could not be compiled"),
    ("", "could not be compiled"),
])  # fmt: skip
def test_a_compiler_that_fails_is_quoted_once_and_leaves_torch_in_charge(world, script, words):
    (told,) = world.ask(CC=world.compiler(script))
    assert not told.built and told.identity == {"kernels": "torch"}
    assert len(told.said) == 1 and words in told.said[0] and "line 6" not in told.said[0]
    assert "FLASHSPEC_KERNELS=0" in told.said[0]
    assert any("kernels" in line and words in line and "to get it: name another compiler" in line for line in told.doctor)
    assert [path.name for path in world.cache.iterdir()] == ["lock"]
    assert world.one(), "the next process finds nothing broken"


def test_what_a_killed_compilation_left_is_removed_by_the_next(world):
    slow = world.compiler("echo half > half.s\nexec sleep 60")
    env = {"PATH": os.environ["PATH"], "HOME": str(world.place / "home"), "CC": str(slow)}
    script = "from flashspec.kernels import build; build.library()"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=env, start_new_session=True) as caught:
        while not list(world.cache.glob("building-*/half.s")):
            assert caught.poll() is None
            time.sleep(0.05)
        os.killpg(caught.pid, signal.SIGKILL)
    assert list(world.cache.glob("building-*")) and world.one()


def test_processes_and_threads_that_ask_together_compile_once(world):
    assert [told.built for told in world.ask(processes=4)] == [True] * 4
    assert world.compilations == 1 and world.kept()
    shutil.rmtree(world.cache)
    for count, env in enumerate(({}, {"HOME": "/dev/null"})):
        (told,) = world.ask(threads=4, **env)
        assert told.built and world.compilations == 2 + count and len(set(told.said)) == count

"""Where the points of a sweep run: processes that can be stopped, here or on the workers of a Dask scheduler.

What a process makes of a task stays in the task's folder; its answer says why it failed, if it did.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flashspec
from flashspec import provenance
from flashspec.parameters import Refused
from flashspec.refusals import in_words
from flashspec.study.registry import experiment_of

RESULT = "result"  # of a task, in its folder
WORKER = "FLASHSPEC_WORKER"  # the variable, and so the fact in an origin, that says who measured
UNDER_WAY = 256  # tasks handed to an engine at a time
CONNECT = 60  # seconds for a first Dask worker
OPEN = re.compile(r"tls://.+:\d+|tcp://(127\.[\d.]+|localhost|\[::1\]):\d+")
Task = dict[str, Any]
Answer = dict[str, Any]
Engine = tuple[Executor, Callable[[Task], Answer]]

_mine = threading.local()
_all = set["Process"]()
_alone = threading.Lock()


class Process:
    """A Python process that runs one task after another and ends with the process that started it."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env={**variables, **os.environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
        _all.add(self)
        with suppress(EOFError):
            self.pipe.recv()

    def ask(self, task: Task) -> Answer:
        """The answer to a task; a failed one where the process ended, or was stopped when its seconds were up."""
        why = f"it was stopped after {task['seconds']:g} s"
        try:
            self.pipe.send(task)
            if self.pipe.poll(task["seconds"]):
                return dict(self.pipe.recv())
        except (EOFError, OSError):
            why = "its process ended before it did"
        self.stop()
        return {"failed": why}

    def stop(self) -> None:
        """End the process and everything that it started."""
        stop(self.process.pid)
        self.process.wait()
        _all.discard(self)


def stop(number: int) -> None:
    """End a process and everything that it started, kernels too."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(number)
        for each in [*first.children(recursive=True), first]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def attempt(variables: dict[str, str], task: Task) -> Answer:
    """Run a task in this thread's own process, which gets these variables when it starts."""
    if getattr(_mine, "process", None) not in _all:
        _mine.process = Process(variables)
    return _mine.process.ask(task)


def attempt_away(here: str, task: Task) -> Answer:
    """`attempt` on a Dask worker, one task at a time, since a clock may run in it; its files come back."""
    from distributed import get_worker

    worker = get_worker()
    refuse_other(worker.address, identity(), here)
    name = str(worker.name) if worker.name != worker.address else f"worker-{provenance.short_hash(worker.address, 6)}"
    with _alone, TemporaryDirectory(dir=worker.local_directory) as place:
        (folder := Path(place, "point")).mkdir()
        answer = attempt({WORKER: name}, {**task, "folder": str(folder), "home": str(Path.cwd())})
        return {**answer, "files": Path(shutil.make_archive(f"{place}/files", "tar", folder)).read_bytes()}


@contextmanager
def local(workers: int) -> Iterator[Engine]:
    """Processes of this machine, so many at a time; all of them end with the block."""
    threads = {"OMP_NUM_THREADS": str(max(1, provenance.usable_cores() // workers))} if workers > 1 else {}
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool, partial(attempt, {**threads, WORKER: "local"})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_all):
            process.stop()


@contextmanager
def dask(address: str, trusted: bool = False) -> Iterator[Engine]:
    """The workers of a Dask scheduler, one at least within a minute; Refused where one has other versions.

    Whoever reaches a scheduler runs code as its user: tcp to another machine is Refused unless `trusted`.
    """
    from distributed import Client

    if not (OPEN.fullmatch(address) or trusted):
        raise Refused(
            f"{address!r:.80} is neither this machine nor encrypted, and whoever reaches a scheduler runs code as you: "
            "give tls://HOST:8786 or tcp://127.0.0.1:8786, or say --trusted for a network that is yours alone"
        )
    try:
        here, connected = identity(), Client(address)
    except Exception as error:
        raise Refused(f"no Dask scheduler answers at {address} ({error}): check it and its certificates") from error
    with connected as client:
        client.wait_for_workers(1, timeout=CONNECT)
        for worker, found in client.run(identity, on_error="return").items():
            refuse_other(worker, found, here)
        try:
            yield client.get_executor(pure=True), partial(attempt_away, here)
        except (RuntimeError, CancelledError) as error:
            raise Refused(f"the scheduler at {address} has gone; start it, then run the same command") from error


def identity() -> str:
    """The versions that runner and workers must have in common."""
    return f"flashspec {flashspec.__version__} and Python {sys.version_info[0]}.{sys.version_info[1]}"


def refuse_other(worker: str, found: Any, here: str) -> None:
    """Refuse a worker whose versions are not those of the runner."""
    if found != here:
        said = found if isinstance(found, str) else f"no flashspec that sweeps ({found})"
        raise Refused(f"worker {worker} has {said}, the runner has {here}: install the same there")


def answered(engine: Engine, tasks: Iterable[Task], retries: int) -> Iterator[tuple[Task, Answer]]:
    """Tasks with their answers as they come, failed ones after so many more attempts."""
    (pool, call), running = engine, dict[Future, tuple[Task, int]]()
    waiting = deque((task, retries) for task in tasks)
    while waiting or running:
        while waiting and len(running) < UNDER_WAY:
            task, left = waiting.popleft()
            running[pool.submit(call, task)] = task, left
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task, left = running.pop(future)
            try:
                answer = future.result()
            except CancelledError:
                raise
            except Exception as error:
                answer = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
            if "failed" in answer and left:
                waiting.append((task, left - 1))
            else:
                yield task, answer


def _made(task: Task) -> Answer:
    """Run a task in this process."""
    folder, name = Path(task["folder"]), task["name"]
    try:
        os.chdir(task["home"])
        folder.mkdir(parents=True, exist_ok=True)
        if task["text"]:
            name = str(folder / name)
            Path(name).write_text(task["text"], encoding="utf-8")
        experiment = experiment_of(name, folder)
        here = experiment.digests(experiment.parse(task["params"]))
        if other := [name for name, found in here.items() if found != task["models"].get(name)]:
            raise Refused(f"the model {other[0]!r} is another file here than at the runner: copy the file")
        experiment.run(task["params"], root=folder).path.replace(folder / RESULT)
        return {}
    except Exception as error:
        return {"failed": in_words(error)}


def _listen(pipe: Connection, tasks: queue.SimpleQueue) -> None:
    """Pass tasks on; when their sender has gone, end everything that was started here."""
    with suppress(EOFError, OSError):
        while True:
            tasks.put(pipe.recv())
    stop(os.getpid())


def serve(number: int) -> None:
    """Answer tasks from an open connection for as long as there is somebody at its other end."""
    pipe, tasks = Connection(number), queue.SimpleQueue[Task]()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    answer: Answer = {}
    while True:
        pipe.send(answer)
        answer = _made(tasks.get())


if __name__ == "__main__":
    serve(int(sys.argv[1]))

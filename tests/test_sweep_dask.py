"""A real Dask scheduler and real workers on loopback give the table that this machine gives, whoever dies on the way."""

import json
import subprocess
import sys
import time

import psutil
import pytest
from shelf import refused
from sleeper import ENV, SWEEP, notebook, start, sweep

from flashspec.study import engines

distributed = pytest.importorskip("distributed")
HERE = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]


class Cluster:
    """A scheduler and its workers, all of them processes of their own."""

    def __init__(self, folder, protocol="tcp", env=ENV):
        self.folder, self.protocol, self.env, self.file = folder, protocol, env, folder / "scheduler.json"
        folder.mkdir(exist_ok=True)
        self.processes = [self.dask("scheduler", "--port", "0", "--scheduler-file", str(self.file))]
        until(self.file.exists)
        self.address = json.loads(self.file.read_text())["address"]

    def dask(self, role, *words):
        line = [sys.executable, "-m", "dask", role, *HERE, "--protocol", self.protocol, *words]
        return subprocess.Popen(line, env=self.env, cwd=self.folder, stderr=subprocess.DEVNULL)

    def worker(self, name, *words):
        """A worker, which has reported for work where the connection is plain."""
        new = self.dask("worker", self.address, "--nthreads", "2", "--no-nanny", "--name", name, *words)
        self.processes.append(new)
        if self.protocol == "tcp":
            with distributed.Client(self.address) as client:
                until(lambda: name in {each["name"] for each in client.scheduler_info()["workers"].values()})
        return psutil.Process(new.pid)

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def workers(cluster):
    return [cluster.worker(name) for name in ("box-1", "box-2")]


def away(cluster):
    return ["--engine", "dask", "--scheduler", cluster.address]


def table(folder, out):
    """Its lines, and the workers named in the last column."""
    lines = [line.rpartition(",") for line in (folder / out / "table.csv").read_text().splitlines()[1:]]
    return [line[0] for line in lines], {line[2] for line in lines}


GRID = ["-p", "k=1..8", "-p", "temperature=0,1", "-p", "nap=0.3"]


def test_two_workers_give_the_local_table_and_one_may_die(cluster, workers, tmp_path):
    for name in ("sleeper:TIMED", notebook(tmp_path).name):
        grid = GRID if ":" in name else ["-p", "k=1..2"]
        for place in ("here", "away"):
            assert sweep(tmp_path, name, *grid, "--out", f"{name}-{place}", *(away(cluster) if place == "away" else ()))[0] == 0
        (here, alone), (there, both) = table(tmp_path, f"{name}-here"), table(tmp_path, f"{name}-away")
        assert here == there and alone == {"local"} and both == {"box-1", "box-2"}
    spare = cluster.worker("box-3")
    runner = start(tmp_path, "sleeper:TIMED", *GRID, "--out", "third", *away(cluster))
    until(lambda: len(list(tmp_path.glob("third/points/*"))) > 2 and spare.children())
    (busy,) = spare.children()
    spare.kill()
    assert runner.wait(timeout=600) == 0 and table(tmp_path, "third")[0] == table(tmp_path, "sleeper:TIMED-here")[0]
    assert not psutil.wait_procs([busy], timeout=60)[1]


def test_what_a_notebook_measures_there_and_what_fails_comes_back(cluster, workers, tmp_path):
    (tmp_path / "book").mkdir()
    notebook(tmp_path, "from flashspec.study import run\nrun('sleeper:TIMED', {'k': k})", "print(1 / (k - 2))")
    status, said = sweep(tmp_path, "nap.ipynb", "-p", "k=1..3", *away(cluster))
    assert status == 1 and "k=2: nap.ipynb failed, ZeroDivisionError" in said
    assert len(list(tmp_path.glob("sweeps/nap/executed/*.ipynb"))) == 2
    assert len(list(tmp_path.glob("book/results/timed/*.parquet"))) == 3  # what was measured before a failure, too
    (part,) = tmp_path.glob("sweeps/nap/unfinished/*/executed/nap.part.ipynb")
    assert "ZeroDivisionError" in part.read_text()


def test_everything_listens_on_this_machine_alone(cluster, workers):
    for process in map(psutil.Process, [each.pid for each in cluster.processes if each.poll() is None]):
        listening = lambda: {each.laddr.ip for each in process.net_connections() if each.status == psutil.CONN_LISTEN}  # noqa: E731, B023
        until(listening)
        assert listening() == {"127.0.0.1"}


def test_another_version_is_refused_over_tls(tmp_path):
    line = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=flashspec -keyout key.pem -out cert.pem"
    subprocess.run(line.split(), cwd=tmp_path, check=True, capture_output=True)
    start = "DASK_DISTRIBUTED__COMM__"
    env = {**ENV, f"{start}TLS__CA_FILE": str(tmp_path / "cert.pem"), f"{start}REQUIRE_ENCRYPTION": "true"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        env |= {f"{start}TLS__{role}__{what}": str(tmp_path / f"{what.lower()}.pem") for what in ("KEY", "CERT")}
    cluster = Cluster(tmp_path / "tls", "tls", env)
    try:
        (tmp_path / "other.py").write_text("import flashspec\nflashspec.__version__ = '0.0.1'\n")
        for words, found, said in (
            (["--preload", str(tmp_path / "other.py")], 2, "has flashspec 0.0.1 and Python 3.* the runner has flashspec"),
            ([], 0, "1 rows in"),
        ):
            worker = cluster.worker("box", *words)
            line = [*SWEEP, "sleeper:EXPERIMENT", "-p", "k=1", *away(cluster)]
            runner = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert runner.returncode == found and said.partition(" Python")[0].split("*")[0] in runner.stderr
            worker.kill()
        assert sweep(tmp_path, "sleeper:EXPERIMENT", "-p", "k=2", *away(cluster))[0] == 2  # without the certificate
    finally:
        cluster.close()


@pytest.mark.parametrize(("address", "words"), [
    ("tcp://10.0.0.7:8786", "neither this machine nor encrypted.*--trusted"),
    ("tcp://127.evil.example:8786", "neither this machine"),
    ("tcp://localhost:1", "no Dask scheduler answers"),
    ("8786", "neither this machine"),
])  # fmt: skip
def test_an_open_address_is_refused(address, words, monkeypatch):
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        refused(words, lambda: engines.dask(address).__enter__())

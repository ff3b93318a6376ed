"""A sweep makes every point of its grid once, keeps it by its content, and says which failed and how to run that one again."""

import io
import re
import shlex
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import sleeper
from shelf import refused, refusing
from sleeper import ENV, EXPERIMENT, NAMES, notebook

from flashspec.cli.main import status
from flashspec.study import engines
from flashspec.study.sweep import Grid, Sweep, read_grid, spoken

NAME = "sleeper:EXPERIMENT"


def test_a_grid_crosses_pairs_and_draws(tmp_path):
    wanted = [{"k": k, "head": head} for k in ("1", "2", "3") for head in ("dense", "flash")]
    assert Grid({"k": "1..3", "head": "dense, flash"}).points() == wanted
    assert Grid({"k": "-1..1,7"}).points() == [{"k": k} for k in ("-1", "0", "1", "7")] and Grid().points() == [{}]
    assert Grid({"k": "[[1, 2], 3]"}).points() == [{"k": [1, 2]}, {"k": 3}]
    (tmp_path / "grid.yaml").write_text("product: {k: 1..1000, nap: [0, 1]}\nzip: {a: [1, 2], b: [x, y]}\nsample: 5\n")
    grid = read_grid(tmp_path / "grid.yaml")
    drawn, everything = grid.points(), replace(grid, product={"k": "1..1000"}, sample=None).points()
    assert len(everything) == 2000 and everything[1000] == {"a": 2, "b": "y", "k": "1"}
    assert len(set(map(str, drawn))) == 5 and {(point["a"], point["b"]) for point in drawn} <= {(1, "x"), (2, "y")}
    assert replace(grid, sample=5).points() == drawn != replace(grid, seed=1).points()


def grid_of(text):
    def call():
        Path("grid.yaml").write_text(text)
        read_grid(Path("grid.yaml")).points()

    return call


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENV[name])
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path)


@pytest.fixture
def run(capsys, monkeypatch):
    """Status and standard error of a sweep in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flashspec", "sweep", *words])
        return status(["sweep", *words]), capsys.readouterr().err

    return call


test_a_bad_grid_is_refused = refusing([
    (Grid({"k": "1..101", "head": "1..101"}).points, "at most 10000 points, and this grid has 10201"),
    (Grid({"k": ""}).points, "'k' has no values"),
    (Grid({"k": "3..1"}).points, "3..1 is empty"),
    (Grid({"k": "1..9,1..99999999"}).points, "more than 10000"),
    (Grid({"k": "[1"}).points, "'k' cannot be read"),
    (Grid({}, {"a": [1, 2], "b": [1]}).points, "one length, but a has 2, b has 1"),
    (lambda: Grid({"k": 1}, {"k": 1}), "'k' is in the product and in the zip"),
    (lambda: Grid(sample=0), "sample must be at least 1"),
    (lambda: spoken("k"), "write NAME=VALUES"),
    (grid_of("product: !!python/object/apply:os.system ['touch made']"), "is no grid .*could not determine a constructor"),
    (grid_of("produkt: {k: 1}"), "did you mean 'product'"),
    (grid_of("product: [1, 2]"), "'product' expects"),
    (grid_of("[" * 1500), "is no grid"),
    (grid_of("a: &a [1, 1]\nb: &b [*a, *a]\nproduct: {k: [*b, *b]}"), "holds aliases"),
    (grid_of("x" * 2**17), "more than 65536 bytes"),
])  # fmt: skip


def keys(name, product, out="out"):
    return [point.key for point in Sweep(name, Grid(product), Path(out)).points]


def test_a_key_is_of_parameters_version_models_and_text(tmp_path, monkeypatch):
    first = keys(NAME, {"k": "1..3"})
    assert len(set(first)) == 3 and keys(NAME, {"k": [3, 2, [1]], "temperature": "0"}) == first[::-1]
    assert not set(first) & {*keys(NAME, {"k": "1..3", "temperature": "0.5"}), *keys("sleeper:TIMED", {"k": "1..3"})}
    monkeypatch.setattr(sleeper, "EXPERIMENT", replace(EXPERIMENT, version=2))
    assert not set(first) & set(keys(NAME, {"k": "1..3"}))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setattr(sleeper, "EXPERIMENT", replace(EXPERIMENT, models=lambda params: {"m": model}))
    before = keys(NAME, {"k": "1"})
    (model / "config.json").write_text("[ ]")
    assert keys(NAME, {"k": "1"}) != before
    path = tmp_path / "nap.ipynb"
    before = keys("nap.ipynb", {"k": "1,2"})
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 7'))
    assert keys("nap.ipynb", {"k": "1,2"}) == before  # a run in an editor changes no text
    notebook(tmp_path, "2 + 2")
    assert not set(keys("nap.ipynb", {"k": "1,2"})) & set(before)


def stamps(out):
    return {path.name: path.stat().st_mtime_ns for path in Path(out).glob("points/*")}


def test_a_first_plan_estimates_from_the_stored_tables_of_its_experiment(run):
    words = (NAME, "-p", "k=1..60", "--plan")
    assert "about" not in run(*words)[1]
    EXPERIMENT.run({"nap": 0.3})
    assert re.search(r"60 points, 0 done, 60 to do, about 0[0-5]:\d\d with --workers 1", run(*words)[1])


@pytest.mark.parametrize("name", NAMES.values())
def test_finished_points_stay_and_only_new_ones_are_made(name, run):
    words = (name, "--out", "out", "--workers", "1", "-p")
    assert "2 points, 0 done, 2 to do" in run(*words, "k=1..2", "--plan")[1] and not Path("out").exists()
    assert run(*words, "k=1..2")[0] == 0
    before, (damaged,) = stamps("out"), keys(name, {"k": 2})
    path = next(Path("out/points").glob(f"{damaged}.*"))
    path.write_bytes(path.read_bytes()[:-40])
    found, said = run(*words, "k=1..3")
    assert found == 0 and "3 points, 1 done, 2 to do, about" in said
    assert before.items() - stamps("out").items() == {(path.name, before[path.name])}
    lines = Path("out/table.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["k", "1", "2", "3"] and "value" in lines[0] and "0.333" in lines[1]
    after = stamps("out")
    assert run(*words, "k=1..3")[0] == 0 and stamps("out") == after
    assert run(*words, "k=3", "--force")[0] == 0 and len(stamps("out").items() - after.items()) == 1
    assert status(["results", "verify", "--digests", "--results", "out"]) == 0


@pytest.mark.parametrize("kind", NAMES)
def test_every_failure_is_one_and_its_command_runs_that_point_alone(kind, run, tmp_path):
    words = ["-p", "k=2", "-p", 'fail=["", "error", "die", "hang"]', "-p", "temperature=1", "--out", "o"]
    late = {"experiment": "10", "notebook": "30"}[kind]  # a kernel's start takes seconds on a busy machine
    found, said = run(NAMES[kind], *words, "--timeout", late, "--workers", "3", "--retries", "0")
    left = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    assert found == 1 and len(stamps("o")) == 1 and not left
    died = {"experiment": "its process ended", "notebook": "Kernel died"}[kind]
    for way, reason in {"error": "the cache is cold", "die": died, "hang": f"stopped after {late} s"}.items():
        assert said.count(reason) == 1 and f"k=2 fail={way} temperature=1: " in said
    assert len(list(tmp_path.glob("o/unfinished/*/executed/nap.part.ipynb"))) == (3 if kind == "notebook" else 0)
    again = shlex.split(said[said.index("again: ") + 7 :].splitlines()[0])
    assert again[:3] == ["flashspec", "sweep", NAMES[kind]]
    found, said = run(*again[2:])
    assert found == 1 and "4 points, 1 done, 1 to do" in said and said.count("failed: ") == said.count("--only") == 1
    assert len(Path("o/table.csv").read_text().splitlines()) == 2


def test_a_retry_is_another_attempt():
    answers = [{"failed": "once"}, {"made": "x"}]
    with engines.local(1) as (pool, _):
        for retries in (0, 1):
            left = iter(answers)
            found = engines.answered((pool, lambda task, left=left: next(left)), [{}], retries=retries)
            assert [answer for _, answer in found] == [answers[retries]]


def test_another_runner_is_refused_and_an_interrupt_ends_everything(tmp_path):
    busy = Sweep(NAME, Grid({"nap": 60}), tmp_path / "out")
    runner = sleeper.start(tmp_path, NAME, "-p", "nap=60", "--out", "out")
    while not list(tmp_path.glob("out/unfinished/*/sleeper/*")):
        time.sleep(0.1)
    with engines.local(1) as engine:
        refused("another runner is at work in .*out", busy.run, engine, busy.points, 0, lambda: None)
    there = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(2)
    assert runner.wait(timeout=120) == 130 and there and not psutil.wait_procs(there, timeout=60)[1]


def test_timed_experiments_run_one_at_a_time_and_name_the_worker(run, monkeypatch):
    monkeypatch.setenv("FLASHSPEC_WORKER", "box")
    asked, real = [], engines.local
    monkeypatch.setattr(engines, "local", lambda workers: asked.append(workers) or real(workers))
    for name, who in (("sleeper:TIMED", ",box"), (NAME, "")):
        assert run(name, "-p", "nap=0.1", "-p", "k=1..4", "--workers", "4", "--out", "out")[0] == 0
        assert Path("out/table.csv").read_text().splitlines()[1] == f"0.1,1,0.3333333333333333{who}"
    assert asked == [1, 4]


def test_a_worker_that_names_files_elsewhere_is_refused(tmp_path):
    sweep = Sweep(NAME, Grid({"k": 1}), tmp_path / "out")
    (task,) = map(sweep._task, sweep.points)
    for name in ("../../mine", "result"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as files:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (tarfile.SYMTYPE, "/etc/hostname") if name == "result" else (tarfile.REGTYPE, "")
            files.addfile(entry)
        refused("not of its point's folder", sweep._keep, task, {"failed": "", "files": packed.getvalue()})
    assert not list(tmp_path.rglob("mine")) and not list(tmp_path.rglob("result"))


def test_the_books_page_has_commands_that_plan(run, monkeypatch):
    root = Path(__file__).resolve().parents[1]
    page = (root / "book" / "cluster.md").read_text()
    grid = Path("grid.yaml").resolve()
    grid.write_text(re.search("```yaml\n(.*?)```", page, flags=re.S)[1])
    monkeypatch.chdir(root)
    lines = re.findall(r"^flashspec sweep (.*?)(?: +#.*)?$", page, flags=re.M)
    for line in lines:
        found, said = run(*shlex.split(line.replace("grid.yaml", str(grid))), "--plan")
        assert found == 0 and re.search(r": \d+ points, \d+ done, \d+ to do", said), said
    assert len(lines) > 5

"""An experiment's table is complete, typed and of its parameters, or it is not there; a killed sweep goes on where it stopped."""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from shelf import refused

from flashspec import provenance
from flashspec.parameters import canonical, parse
from flashspec.study import EXPERIMENTS, Experiment, Refused, params, run, stored, tables
from flashspec.study.tables import default_root


@dataclass(frozen=True)
class Params:
    blocks: tuple[int, ...] = (1, 2, 3)
    temperature: float = 0.0
    method: Literal["dense", "flash"] = "flash"
    exact: bool = True
    draft: str | None = None

    def __post_init__(self):
        if any(block < 1 for block in self.blocks):
            raise ValueError(f"every block must be at least 1, got {self.blocks}")


@dataclass(frozen=True)
class Row:
    block: int
    time: float
    exact: bool
    note: str
    limit: float | None


class Counted:
    """An experiment that counts how often each block was measured and can be made to fail."""

    def __init__(self, **changes):
        self.calls, self.broken = [], ()
        presets = {"smoke": Params((1,))}
        self.experiment = Experiment("counted", Params, Row, self.rows, split=self.points, presets=presets, **changes)

    def points(self, params):
        return [replace(params, blocks=(block,)) for block in params.blocks]

    def rows(self, params):
        (block,) = params.blocks
        if block in self.broken:
            raise KeyboardInterrupt
        self.calls.append(block)
        yield Row(block, 0.1 * block, block > 1, 'a, "b"\nc', None if block == 1 else 1e-17)

    def cut(self, root, block=3):
        self.broken = (block,)
        with pytest.raises(KeyboardInterrupt):
            run(self.experiment, root=root)
        self.broken = ()


@pytest.fixture
def counted():
    return Counted()


def another_machine(monkeypatch):
    facts = {**provenance.machine(), "cpu": "another"}
    monkeypatch.setattr(provenance, "machine", lambda: facts)


def test_a_stored_table_is_returned_and_fresh_measures_again(counted, tmp_path):
    assert stored(counted.experiment, tmp_path) is None
    first, again = run(counted.experiment, root=tmp_path), run(counted.experiment, root=tmp_path)
    assert counted.calls == [1, 2, 3] and stored(counted.experiment, tmp_path).rows == first.rows
    assert again.rows == first.rows == tuple(Row(b, 0.1 * b, b > 1, 'a, "b"\nc', None if b == 1 else 1e-17) for b in (1, 2, 3))
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]
    run(counted.experiment, fresh=True, root=tmp_path)
    assert counted.calls == [1, 2, 3, 1, 2, 3]
    frame = first.frame
    assert list(frame.columns) == list(Row.__dataclass_fields__) and frame["time"].tolist() == [0.1, 0.2, 0.1 * 3]
    assert frame["exact"].dtype == bool and frame["limit"].dtype == float
    found = run(counted.experiment, {"temperature": "0.7"}, root=tmp_path)
    assert found.origin["params"]["temperature"] == 0.7 and str(tmp_path) not in str(found.origin)
    assert {"commit", "machine", "versions", "duration_s", "models", "kernels", "variables"} <= found.origin.keys()
    assert found.machine == provenance.describe(provenance.origin())


def test_the_models_read_enter_the_origin_and_another_model_is_called_so(counted, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    reading = replace(counted.experiment, models=lambda params: {"m": folder})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(reading, root=tmp_path)
        assert run(reading, root=tmp_path).origin["models"] == {"m": provenance.model_digests(folder)}
    (folder / "config.json").write_text("[]")
    with pytest.warns(UserWarning, match="another model named m .*--fresh"):
        run(reading, root=tmp_path)


@pytest.mark.parametrize("measured", [True, False])
def test_only_a_clock_of_another_machine_writes_beside_the_stored_table(measured, tmp_path, monkeypatch):
    counted = Counted(measured=measured)
    before = run(counted.experiment, root=tmp_path)
    another_machine(monkeypatch)
    fresh = run(counted.experiment, fresh=True, root=tmp_path)
    assert fresh.origin["machine"]["cpu"] == "another"
    assert (fresh.path == before.path) is not measured and fresh.path.name.startswith(before.path.stem)
    assert (run(counted.experiment, root=tmp_path).origin == before.origin) is measured


def test_strings_and_values_parse_to_the_same_parameters(tmp_path):
    plain = canonical(Params())
    assert plain == canonical(Params(temperature=0)) == canonical(Params(blocks=[1, 2, 3])) != canonical(Params(temperature=0.5))
    assert json.dumps(plain) == json.dumps(canonical(Params(temperature=0)))  # 0 and 0.0 are one key
    assert Counted().experiment.place(Params(), tmp_path) != Counted(version=2).experiment.place(Params(), tmp_path)
    said = {"blocks": "1, 5", "temperature": "0.7", "method": "dense", "exact": "false", "draft": "none"}
    assert parse(Params, said) == Params((1, 5), 0.7, "dense", False, None)
    assert parse(Params, {"blocks": "(1, 5)"}) == parse(Params, {"blocks": [1, 5]}) == Params((1, 5))
    assert parse(Params, canonical(Params(draft="x"))) == Params(draft="x")
    assert params({"blocks": 3, "other": object(), "exact": print}, Counted().experiment) == Params((3,))
    assert params({"k": 3, "temperature": [0, 1]}) == EXPERIMENTS["race"].parse({"k": "3", "temperature": "0,1"})


@pytest.mark.parametrize(("said", "word"), [
    ({"temprature": 1}, "did you mean 'temperature'"),
    ({"temperature": "warm"}, "'temperature' expects a number"),
    ({"exact": "maybe"}, "'exact' expects True or False"),
    ({"method": "fast"}, "one of 'dense', 'flash'"),
    ({"blocks": "1,x"}, "'blocks' expects"),
    ({"blocks": (0,)}, "at least 1"),
    ({"blocks": ()}, "nothing to measure"),
    ("nowhere", "no preset 'nowhere'; it has: smoke"),
])  # fmt: skip
def test_bad_parameters_are_refused_and_nothing_is_written(counted, tmp_path, said, word):
    refused(word, run, counted.experiment, said, root=tmp_path)
    assert list(tmp_path.iterdir()) == [] and counted.calls == []


@pytest.mark.parametrize(("elsewhere", "calls"), [(False, [1, 2, 2, 3]), (True, [1, 2, 1, 2, 3])])
def test_a_damaged_point_and_points_of_another_machine_are_measured_again(counted, tmp_path, monkeypatch, elsewhere, calls):
    counted.cut(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []  # nothing was measured, nothing is kept
    counted.cut(tmp_path)
    second = next(path for path in tmp_path.glob("counted/*.part/*") if tables.read(path, Row).rows[0].block == 2)
    another_machine(monkeypatch) if elsewhere else second.write_bytes(second.read_bytes()[:-9])
    assert [row.block for row in run(counted.experiment, root=tmp_path).rows] == [1, 2, 3] and counted.calls == calls
    assert second.exists() is elsewhere  # set aside, not deleted


CHILD = """
import dataclasses, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_study import Counted
from flashspec.study import run
counted = Counted()
def die(*given):
    os.kill(os.getpid(), signal.SIGKILL)
changes = {
    "measuring": {"function": lambda params: die() if params.blocks == (3,) else counted.rows(params)},
    "writing": {},
    "together": {"split": lambda params: time.sleep(0.3) or counted.points(params)},
}[sys.argv[3]]
if sys.argv[3] == "writing":
    write = Path.write_bytes
    Path.write_bytes = lambda self, data: write(self, data[:99]) and die() if "parquet" in self.name else write(self, data)
run(dataclasses.replace(counted.experiment, **changes), root=Path(sys.argv[1]))
print(len(counted.calls))
"""


def child(root, what):
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(root), str(Path(__file__).parent), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("moment", "left"), [("measuring", [3]), ("writing", [])])
def test_kill_minus_nine_leaves_no_table_and_the_next_run_finishes_it(counted, tmp_path, moment, left):
    assert child(tmp_path, moment).wait() == -9 and not list((tmp_path / "counted").glob("*.parquet"))
    found = run(counted.experiment, root=tmp_path)
    assert counted.calls == left and found.origin["resumed_points"] == 3 - len(left)
    assert found.rows == run(Counted().experiment, root=tmp_path / "whole").rows
    assert list(found.path.parent.iterdir()) == [found.path]


def test_two_processes_measure_a_table_once(tmp_path):
    both = [child(tmp_path, "together") for _ in range(2)]
    assert sorted(int(process.communicate()[0]) for process in both) == [0, 3]


def test_a_damaged_table_is_refused_and_fresh_repairs_it(counted, tmp_path):
    path = run(counted.experiment, root=tmp_path).path
    path.write_bytes(path.read_bytes()[:-20])
    refused("damaged.*--fresh", run, counted.experiment, root=tmp_path, error=Refused)
    assert run(counted.experiment, fresh=True, root=tmp_path).path == path
    assert [row.block for row in run(counted.experiment, root=tmp_path).rows] == [1, 2, 3]


def test_every_registered_experiment_bears_its_name_and_a_smoke_preset():
    assert {*EXPERIMENTS} == {"decodes", "exits", "family", "parts", "race", "real_shapes", "recall"}
    for name, found in EXPERIMENTS.items():
        assert found.name == name and found.summary
        assert found.preset("smoke") and canonical(found.params())
    assert {"end_to_end", "sweep_350", "hispec_grid", "peers", "draft_step", "formats"} <= set(EXPERIMENTS.presets())
    assert EXPERIMENTS.preset("head_build").name == "recall" and EXPERIMENTS.preset("head_cost").name == "parts"
    assert EXPERIMENTS.preset("many-1") is EXPERIMENTS.preset("smoke") is EXPERIMENTS["race"]
    for asked in (EXPERIMENTS.preset, run):
        refused("unknown experiment 'no'; known experiments: decodes, exits, .*recall", asked, "no", error=Refused)


def test_the_results_live_in_the_book_of_the_nearest_folder_upwards(tmp_path, monkeypatch):
    monkeypatch.delenv("FLASHSPEC_RESULTS", raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert default_root() == tmp_path / "book" / "results"

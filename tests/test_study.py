"""A table is complete, typed and of its parameters, or it is not there; a killed sweep goes on where it stopped."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from flashspec import provenance
from flashspec.study import Experiment, Refused, experiment, registry, run, store
from flashspec.study.columns import Columns
from flashspec.study.parameters import canonical, key, parse


@dataclass(frozen=True)
class Params:
    blocks: tuple[int, ...] = (1, 2, 3)
    temperature: float = 0.0
    method: Literal["dense", "flash"] = "flash"
    exact: bool = True
    draft: str | None = None

    def __post_init__(self) -> None:
        if any(block < 1 for block in self.blocks):
            raise ValueError(f"every block must be at least 1, got {self.blocks}")


class Row(NamedTuple):
    block: int
    time: float
    exact: bool
    note: str
    limit: float | None


class Counted:
    """An experiment that counts how often each block was measured and can be made to fail."""

    def __init__(self, measured=True):
        self.calls, self.broken = [], ()
        self.experiment = Experiment("counted", Params, Row, self.rows, measured=measured, split=self.points)

    def points(self, params):
        return [Params(blocks=(block,), temperature=params.temperature) for block in params.blocks]

    def rows(self, params):
        """Rows of one block."""
        (block,) = params.blocks
        if block in self.broken:
            raise KeyboardInterrupt
        self.calls.append(block)
        yield Row(block, 0.1 * block, block > 1, 'a, "b"\nc', None if block == 1 else 1e-17)


@pytest.fixture
def counted():
    return Counted()


def test_a_stored_table_is_returned_and_not_measured_again(counted, tmp_path):
    first = run(counted.experiment, root=tmp_path)
    again = run(counted.experiment, root=tmp_path)
    assert counted.calls == [1, 2, 3]
    assert again.rows == first.rows == tuple(Row(b, 0.1 * b, b > 1, 'a, "b"\nc', None if b == 1 else 1e-17) for b in (1, 2, 3))
    assert {path.suffix for path in (tmp_path / "counted").iterdir()} == {".csv", ".json"}


def test_fresh_measures_again(counted, tmp_path):
    run(counted.experiment, root=tmp_path)
    run(counted.experiment, fresh=True, root=tmp_path)
    assert counted.calls == [1, 2, 3, 1, 2, 3]


def test_the_frame_has_the_columns_of_the_row_type(counted, tmp_path):
    frame = run(counted.experiment, root=tmp_path).frame
    assert list(frame.columns) == list(Row._fields)
    assert frame["time"].tolist() == [0.1, 0.2, 0.1 * 3]
    assert frame["exact"].dtype == bool


def test_the_origin_names_parameters_machine_and_duration(counted, tmp_path):
    found = run(counted.experiment, {"temperature": "0.7"}, root=tmp_path)
    assert found.origin["params"]["temperature"] == 0.7
    assert {"commit", "machine", "versions", "duration_s", "models", "csv_sha256"} <= found.origin.keys()
    assert found.machine == provenance.describe(provenance.origin())


def test_the_models_read_enter_the_origin(counted, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    reading = Experiment("reads", Params, Row, counted.rows, split=counted.points, models=lambda p: {"draft": folder})
    found = run(reading, root=tmp_path)
    assert found.origin["models"] == {"draft": provenance.model_digests(folder)}


def another_machine(monkeypatch):
    facts = {**provenance.machine(), "cpu": "another"}
    monkeypatch.setattr(provenance, "machine", lambda: facts)


def test_another_machine_writes_beside_the_stored_table(counted, tmp_path, monkeypatch):
    stored = run(counted.experiment, root=tmp_path)
    another_machine(monkeypatch)
    fresh = run(counted.experiment, fresh=True, root=tmp_path)
    shown = run(counted.experiment, root=tmp_path)
    assert fresh.path != stored.path and fresh.path.name.startswith(key(Params()) + "-")
    assert shown.origin == stored.origin
    assert fresh.origin["machine"]["cpu"] == "another"


def test_a_function_of_the_source_is_replaced_on_any_machine(tmp_path, monkeypatch):
    counted = Counted(measured=False)
    stored = run(counted.experiment, root=tmp_path)
    another_machine(monkeypatch)
    assert run(counted.experiment, fresh=True, root=tmp_path).path == stored.path


def test_the_key_is_of_the_parameters_alone():
    assert key(Params()) == key(Params(temperature=0)) == key(Params(blocks=[1, 2, 3]))
    assert key(Params()) != key(Params(temperature=0.5))


def test_strings_and_values_parse_to_the_same_parameters():
    said = {"blocks": "1, 5", "temperature": "0.7", "method": "dense", "exact": "false", "draft": "none"}
    assert parse(Params, said) == Params((1, 5), 0.7, "dense", False, None)
    assert parse(Params, {"blocks": "(1, 5)"}) == parse(Params, {"blocks": [1, 5]}) == Params((1, 5))
    assert parse(Params, canonical(Params(draft="x"))) == Params(draft="x")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"zzz": 1}, "known parameters: blocks, temperature, method, exact, draft"),
        ({"temperature": "warm"}, "'temperature' expects float"),
        ({"exact": "maybe"}, "'exact' expects bool"),
        ({"exact": 1}, "'exact' expects bool"),
        ({"method": "fast"}, "one of 'dense', 'flash'"),
        ({"blocks": "1,x"}, "'blocks' expects"),
        ({"blocks": (1.5,)}, "'blocks' expects"),
        ({"blocks": (0,)}, "at least 1"),
    ],
)
def test_bad_parameters_are_refused_and_nothing_is_written(counted, tmp_path, said, word):
    with pytest.raises(ValueError, match=word) as refusal:
        run(counted.experiment, said, root=tmp_path)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [] and counted.calls == []


def test_an_interrupted_sweep_continues_where_it_stopped(counted, tmp_path):
    counted.broken = (3,)
    with pytest.raises(KeyboardInterrupt):
        run(counted.experiment, root=tmp_path)
    counted.broken = ()
    found = run(counted.experiment, root=tmp_path)
    assert counted.calls == [1, 2, 3]
    assert [row.block for row in found.rows] == [1, 2, 3] and found.origin["resumed_points"] == 2


def test_a_half_written_journal_line_is_measured_again(counted, tmp_path):
    counted.broken = (3,)
    with pytest.raises(KeyboardInterrupt):
        run(counted.experiment, root=tmp_path)
    (journal,) = (tmp_path / "counted").glob("*.part.jsonl")
    journal.write_bytes(journal.read_bytes()[:-9])
    counted.broken = ()
    assert [row.block for row in run(counted.experiment, root=tmp_path).rows] == [1, 2, 3]
    assert counted.calls == [1, 2, 2, 3]


def test_rows_of_another_machine_are_not_mixed_in(counted, tmp_path, monkeypatch):
    counted.broken = (3,)
    with pytest.raises(KeyboardInterrupt):
        run(counted.experiment, root=tmp_path)
    counted.broken = ()
    another_machine(monkeypatch)
    run(counted.experiment, root=tmp_path)
    assert counted.calls == [1, 2, 1, 2, 3]


def test_a_failure_before_the_first_point_leaves_nothing(counted, tmp_path):
    counted.broken = (1,)
    with pytest.raises(KeyboardInterrupt):
        run(counted.experiment, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_study import Counted
from flashspec.study import run, store
counted = Counted()
if sys.argv[3] == "measuring":
    measure = counted.experiment.function
    def rows(params):
        if params.blocks == (3,):
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(params)
    object.__setattr__(counted.experiment, "function", rows)
else:
    replace = Path.replace
    def killed(self, target):
        if str(target).endswith(".json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    Path.replace = killed
run(counted.experiment, root=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["measuring", "writing"])
def test_kill_minus_nine_leaves_no_table_and_the_next_run_finishes_it(counted, tmp_path, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), moment])
    assert done.returncode == -9
    assert not list((tmp_path / "counted").glob("*.json"))
    if moment == "writing":
        with pytest.warns(UserWarning, match="cut short"):
            found = run(counted.experiment, root=tmp_path)
    else:
        found = run(counted.experiment, root=tmp_path)
    assert [row.block for row in found.rows] == [1, 2, 3]
    assert counted.calls == ([3] if moment == "measuring" else [])


def damage_rows(place):
    place.csv.write_text(place.csv.read_text().replace("0.2", "0.3"))


def lose_rows(place):
    place.csv.unlink()


def truncate_rows(place):
    place.csv.write_bytes(place.csv.read_bytes()[:-20])


def damage_origin(place):
    place.json.write_text(place.json.read_text()[:40])


@pytest.mark.parametrize("damage", [damage_rows, lose_rows, truncate_rows, damage_origin])
def test_a_damaged_table_is_refused_and_fresh_repairs_it(counted, tmp_path, damage):
    run(counted.experiment, root=tmp_path)
    damage(store.Place(tmp_path / "counted", key(Params())))
    with pytest.raises(Refused, match="damaged.*--fresh"):
        run(counted.experiment, root=tmp_path)
    run(counted.experiment, fresh=True, root=tmp_path)
    assert [row.block for row in run(counted.experiment, root=tmp_path).rows] == [1, 2, 3]


def test_a_table_of_other_columns_is_refused(counted, tmp_path):
    run(counted.experiment, root=tmp_path)

    class Other(NamedTuple):
        block: int

    changed = Experiment("counted", Params, Other, lambda params: [Other(1)])
    with pytest.raises(Refused, match="has columns block, time"):
        run(changed, root=tmp_path)


def test_a_column_of_a_container_is_refused():
    class Nested(NamedTuple):
        times: tuple[float, ...]

    with pytest.raises(Refused, match="column times"):
        Columns(Nested)


def test_a_row_of_the_wrong_type_is_not_stored(tmp_path):
    wrong = Experiment("wrong", Params, Row, lambda params: [Row(1, "slow", True, "", None)])
    with pytest.raises(TypeError, match="column time expects float"):
        run(wrong, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_measure_a_table_once(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_study import Counted
        from flashspec.study import run
        counted = Counted()
        points = counted.experiment.split
        object.__setattr__(counted.experiment, "split", lambda params: (time.sleep(0.3), points(params))[1])
        run(counted.experiment, root=Path(sys.argv[1]))
        print(len(counted.calls))
    """)
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), str(Path(__file__).parent)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(int(process.communicate()[0]) for process in both) in ([0, 3],)


def test_the_registry_lists_by_file_name_and_refuses_others(monkeypatch, tmp_path):
    (tmp_path / "sweep.py").write_text("from test_study import Counted\nEXPERIMENT = Counted().experiment\n")
    monkeypatch.setattr(registry.experiments, "__path__", [str(tmp_path)])
    assert list(registry.EXPERIMENTS) == sorted(["sweep", *registry.CORE])
    assert "sweep" in registry.EXPERIMENTS and "no" not in registry.EXPERIMENTS
    assert registry.EXPERIMENTS["sweep"].summary == "Rows of one block."
    with pytest.raises(Refused, match="known experiments: .*sweep"):
        run("no")


def test_every_registered_experiment_bears_its_file_name_and_a_smoke_preset():
    for name, found in registry.EXPERIMENTS.items():
        assert found.name == name and found.summary
        assert found.preset("smoke") and canonical(found.params())


def test_the_results_live_in_the_book_of_the_nearest_folder_upwards(tmp_path, monkeypatch):
    monkeypatch.delenv("FLASHSPEC_RESULTS", raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert store.default_root() == tmp_path / "book" / "results"


def test_stored_json_is_plain_and_sorted(counted, tmp_path):
    found = run(counted.experiment, root=tmp_path)
    text = found.path.with_suffix(".json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert experiment.Results.__doc__ and str(tmp_path) not in text

"""A Parquet table comes back as it went in, resumes, and is refused if one bit of it has changed."""

import warnings
from dataclasses import dataclass, replace

import pytest

from flashspec.cli.main import status
from flashspec.study import Experiment, Refused, run, stored, tables
from flashspec.study.columns import Columns
from flashspec.study.store import Place


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float | None = None
    right: bool = True


@dataclass(frozen=True)
class Params:
    size: tuple[int, ...] = (1, 2)  # sizes
    name: str = "a"  # of rows


ROWS = (Row("a, \"b\"\n", 3, 0.1), Row("", -(1 << 60), None, False), Row("é", 0, 1e-300))
MACHINE = {"cpu": "c", "cores": 1, "isa": "i", "device": "cpu"}
ORIGIN = {"experiment": "toy", "machine": MACHINE, "date": "2030-01-01", "models": {}}


def written(folder, rows=ROWS):
    place = Place(folder / "toy", "k")
    tables.write(place, Columns(Row), rows, ORIGIN)
    return place


def points(params):
    return [replace(params, size=(size,)) for size in params.size]


def toy(calls, version=1, broken=()):
    def measure(params):
        for size in params.size:
            calls.append(size)
            if size in broken:
                raise KeyboardInterrupt
            yield Row(params.name, size)

    return Experiment("toy", Params, Row, measure, split=points, version=version, presets={"two": Params((2,))})


def test_a_table_comes_back_with_its_types_and_origin_and_opens_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    place = written(tmp_path)
    found = tables.read(place, Columns(Row))
    assert found.rows == ROWS and found.origin["experiment"] == "toy"
    assert list(pandas.read_parquet(tables.path_of(place)).columns) == ["name", "count", "share", "right"]
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["k.parquet"]


def test_every_flipped_bit_is_refused_in_one_sentence(tmp_path):
    path = tables.path_of(written(tmp_path))
    good = path.read_bytes()
    assert tables.intact(good)
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert not tables.intact(bytes(data))
        if bit % 97:
            continue
        path.write_bytes(data)
        with pytest.raises(Refused, match=r"table k.parquet in toy is damaged, [^\n]+ \(--fresh\)$"):
            tables.opened(path)
    path.write_bytes(good)
    assert tables.read(Place(tmp_path / "toy", "k"), Columns(Row)).rows == ROWS


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d + d, lambda d: d[::-1]])
def test_a_cut_or_grown_file_is_refused(tmp_path, change):
    path = tables.path_of(written(tmp_path))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Refused, match="damaged"):
        tables.opened(path)


def test_a_row_of_the_wrong_type_and_a_forged_seal_are_not_stored(tmp_path):
    with pytest.raises(TypeError, match="column count expects int"):
        written(tmp_path, [Row("a", 1.5)])
    with pytest.raises(ValueError, match="marks the digest"):
        written(tmp_path, [Row("flashspec-sha256:" + "0" * 64, 1)])
    assert not list((tmp_path / "toy").glob("*.parquet"))


def test_other_columns_are_named(tmp_path):
    @dataclass(frozen=True)
    class Other:
        name: str
        weight: float

    with pytest.raises(Refused, match="count, right, share, weight"):
        tables.read(written(tmp_path), Columns(Other))


def test_a_run_is_stored_once_found_by_preset_and_keyed_by_version(tmp_path):
    calls = []
    first = run(toy(calls), "two", root=tmp_path)
    assert run(toy(calls), {"size": 2}, root=tmp_path).rows == first.rows == (Row("a", 2),) and calls == [2]
    assert first.path.suffix == ".parquet" and first.origin["version"] == 1
    run(toy(calls, version=2), "two", root=tmp_path)
    assert calls == [2, 2]
    assert stored(toy(calls), tmp_path) is None


def test_a_killed_run_continues_where_it_was_cut(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        run(toy(calls, broken=(2,)), root=tmp_path)
    whole = run(toy(calls), root=tmp_path)
    assert calls == [1, 2, 2] and len(whole.rows) == 2 and whole.origin["resumed_points"] == 1
    assert [path.suffix for path in (tmp_path / "toy").iterdir()] == [".parquet"]


def test_a_table_about_another_model_is_called_so(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "m.safetensors").write_bytes(b"1")
    experiment = replace(toy([]), models=lambda params: {"m": folder})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(experiment, root=tmp_path)
        run(experiment, root=tmp_path)
    (folder / "m.safetensors").write_bytes(b"2")
    with pytest.warns(UserWarning, match="another model named m .*--fresh"):
        run(experiment, root=tmp_path)


def test_the_command_verifies_lists_and_shows(tmp_path, capsys):
    path = tables.path_of(written(tmp_path))
    assert status(["results", "verify", "--results", str(tmp_path)]) == 0
    assert status(["results", "ls", "--results", str(tmp_path)]) == 0
    assert status(["results", "show", str(path)]) == 0
    assert "3 rows" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[9] ^= 4
    path.write_bytes(data)
    assert status(["results", "verify", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "k.parquet" in said.err and "0 of 1" in said.out
    assert status(["results", "verify", "--results", str(tmp_path / "nowhere")]) == 2

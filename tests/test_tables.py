"""A Parquet table comes back as it went in, and is refused if one bit of it has changed."""

import math
from dataclasses import dataclass

import numpy
import pandas
import pytest
from shelf import refused

from flashspec.cli.main import status
from flashspec.study import Refused, tables


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float | None = None
    right: bool = True


ROWS = (Row('a, "b"\n', 3, 0.1), Row("", -(1 << 60), None, False), Row("é", 0, 1e-300), Row("∞", 1, -math.inf))
MACHINE = {"cpu": "c", "cores": 1, "isa": "i", "device": "cpu"}
ORIGIN = {"experiment": "toy", "machine": MACHINE, "date": "2030-01-01", "models": {}}


def written(folder, rows=ROWS):
    return tables.write(folder / "toy" / "k.parquet", Row, rows, ORIGIN).path


def test_a_table_comes_back_with_its_types_and_origin_and_opens_in_pandas(tmp_path):
    path = written(tmp_path)
    found = tables.read(path, Row)
    assert found.rows == ROWS and found.origin.items() >= ORIGIN.items()
    assert list(pandas.read_parquet(path).columns) == ["name", "count", "share", "right"]
    assert list(path.parent.iterdir()) == [path] and tables.read(path.with_name("l"), Row) is None
    path = written(tmp_path, [Row("a", numpy.int64(3), numpy.float64("nan"), numpy.bool_(False))])
    (row,) = tables.read(path, Row).rows
    assert (row.count, row.right) == (3, False) and math.isnan(row.share)


def test_every_flipped_bit_is_refused_in_one_sentence(tmp_path):
    path = written(tmp_path)
    good = path.read_bytes()
    assert tables.intact(good)
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert not tables.intact(bytes(data))
        if bit % 97 == 0:
            path.write_bytes(data)
            with pytest.raises(Refused, match=r"table k.parquet in toy is damaged, [^\n]+ \(--fresh\)$"):
                tables.opened(path)


CHANGES = [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d + d, lambda d: d[::-1]]


@pytest.mark.parametrize("change", CHANGES)
def test_a_cut_or_grown_file_is_refused(tmp_path, change):
    path = written(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    refused("damaged", tables.read, path, Row, error=Refused)


def test_a_row_of_the_wrong_type_and_a_forged_seal_are_not_stored(tmp_path):
    for row in (Row("a", 1.5), Row("a", True), Row(1, 1), Row("a", None)):
        wrong = r"no row of type Row: Expected .* `\$.(count|name)`"
        refused(wrong, written, tmp_path, [row], error=TypeError)
    refused("marks the digest", written, tmp_path, [Row("flashspec-sha256:" + "0" * 64, 1)])
    assert not list(tmp_path.iterdir())

    @dataclass(frozen=True)
    class Other:
        name: str
        weight: float

    refused("count, right, share, weight", tables.read, written(tmp_path), Other, error=Refused)


def test_the_command_verifies_lists_and_shows(tmp_path, capsys):
    path = written(tmp_path)
    assert status(["results", "verify", "--results", str(tmp_path)]) == 0
    assert status(["results", "ls", "--results", str(tmp_path)]) == 0
    assert status(["results", "show", str(path)]) == 0 and "4 rows" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[9] ^= 4
    path.write_bytes(data)
    assert status(["results", "verify", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "k.parquet" in said.err and "0 of 1" in said.out
    assert status(["results", "verify", "--results", str(tmp_path / "nowhere")]) == 2

"""A Parquet table comes back as it went in, and is refused if one bit of it has changed; what differs is said in words.

Every claim of the three works has a line; ours agrees where its interval holds the printed ratio.
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace

import numpy
import pandas
import pytest
from shelf import ROOT, listing, refused
from test_study import Counted

from flashspec.cli.main import status
from flashspec.study import Refused, registry, run, tables
from flashspec.study.answers import CLAIMS, judged, measured, scoreboard


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float | None = None
    right: bool = True


ROWS = (Row('a, "b"\n', 3, 0.1), Row("", -(1 << 60), None, False), Row("é", 0, 1e-300), Row("∞", 1, -math.inf))
MACHINE = {"cpu": "c", "cores": 1, "isa": "i", "device": "cpu"}
ORIGIN = {"experiment": "toy", "measured": True, "machine": MACHINE, "date": "2030-01-01", "models": {}}


def written(folder, rows=ROWS, name="k", **facts):
    return tables.write(folder / "toy" / f"{name}.parquet", Row, rows, ORIGIN | facts).path


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
    assert tables.intact(good) and not any(map(tables.intact, (good[:-1], good + b"\0", b"", good + good)))
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert not tables.intact(bytes(data))
        if bit % 97 == 0:
            path.write_bytes(data)
            with pytest.raises(Refused, match=r"table k.parquet in toy is damaged, [^\n]+ \(--fresh\)$"):
                tables.opened(path)


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
    assert status(["results", "show", str(path)]) == 0 and "toy/k     4  measured" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[9] ^= 4
    path.write_bytes(data)
    assert status(["results", "verify", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "k.parquet" in said.err and "0 of 1" in said.out
    assert status(["results", "verify", "--results", str(tmp_path / "nowhere")]) == 2


def test_an_older_table_is_read_at_defaults_and_one_of_a_later_schema_is_refused(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Later(Row):
        since: str = "always"

    assert [row.since for row in tables.read(written(tmp_path), Later).rows] == ["always"] * 4
    with monkeypatch.context() as patch:
        patch.setattr(tables, "SCHEMA", 2)
        path = written(tmp_path, versions={"flashspec": "9.1"})
    refused(r"schema 2 of flashspec 9.1, this one reads up to 1: install that one", tables.read, path, Row, error=Refused)


def test_a_forged_file_with_a_sound_digest_is_refused_in_one_sentence(tmp_path):
    path = written(tmp_path)
    data = path.read_bytes()
    for old, new in ((b"{", b"["), (b'"schema": 1', b'"schema":[]'), (b"PAR1", b"PAR2"), (b"name", b"\xffame")):
        path.write_bytes(resealed(data.replace(old, new)))
        assert old in data and refused("sound digest and is no table of ours", tables.opened, path, error=Refused)
    path.write_bytes(resealed(data))
    tables.opened(path)  # the control


def resealed(data):
    at = data.index(tables.SEAL) + len(tables.SEAL)
    blank = data[:at] + tables.BLANK + data[at + 64 :]
    return data[:at] + hashlib.sha256(blank).hexdigest().encode() + data[at + 64 :]


def test_diff_says_in_words_what_differs_and_export_writes_into_nothing_that_it_read(tmp_path, capsys):
    one = written(tmp_path / "s", params={"k": [1, 2]}, threads=1)
    other = written(tmp_path / "s", [replace(ROWS[0], count=4), *ROWS[1:]], "l", params={"k": [1]}, commit="c")
    longer = written(tmp_path / "s", [*ROWS, ROWS[0]], "m", params={"k": [1, 2]}, threads=1)
    before = listing(tmp_path / "s")
    assert status(["results", "diff", str(one), str(one)]) == 0 and "say the same" in capsys.readouterr().out
    assert status(["results", "diff", str(one), str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "origin: commit is not said in A and 'c' in B",
        "parameter k is [1, 2] in A and [1] in B",
        "origin: threads is 1 in A and not said in B",
        "count differs in 1 of 4 rows, first in row 0, 3 in A and 4 in B",
    ]
    assert status(["results", "diff", str(one), str(longer)]) == 1 and "1 rows are in B alone" in capsys.readouterr().out
    for name in ("out.csv", "out.parquet"):
        assert status(["results", "export", str(one), str(tmp_path / name)]) == 0
        assert status(["results", "export", str(one), str(tmp_path / name)]) == 2  # it is there already
        assert status(["results", "export", str(one), str(one.with_name(name))]) == 2
        assert status(["results", "export", str(one), str(tmp_path / "s" / name)]) == 2
    assert listing(tmp_path / "s") == before and tables.read(tmp_path / "out.parquet", Row).rows == ROWS
    exported = pandas.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert exported["count"].tolist() == [row.count for row in ROWS] and exported["name"].tolist() == [row.name for row in ROWS]
    assert json.loads((tmp_path / "out.json").read_text())["params"] == {"k": [1, 2]}
    assert status(["results", "export", str(one), str(tmp_path / "out.xls")]) == 2


@pytest.fixture
def counted(monkeypatch):
    counted = Counted(measured=False)
    monkeypatch.setattr(registry, "EXPERIMENTS", {"counted": counted.experiment})
    return counted


def test_verify_computes_again_what_is_a_function_of_the_source(counted, tmp_path, capsys):
    found = run(counted.experiment, root=tmp_path)
    line = ["results", "verify", "--results", str(tmp_path)]
    assert status(line) == 0 and "1 of 1" in capsys.readouterr().out and counted.calls == [1, 2, 3] * 2
    assert status([*line, "--digests"]) == 0 and counted.calls == [1, 2, 3] * 2
    for change, origin, code, said in (
        ({"block": 7}, {}, 2, "block differs in 1 of 3 rows, first in row 0, 7 in A and 1 in B"),
        ({"time": 0.1 + 1e-9}, {}, 0, "1 computed again"),
        ({"time": 0.1001}, {"measured": True}, 0, "0 computed again"),
        ({}, {"key": "another"}, 2, "calls itself counted/another"),
        ({}, {"version": 2}, 0, "another version, other parameters"),
        ({}, {"params": {**found.origin["params"], "blocks": ["x"]}}, 0, "parameters or models are not here"),
        ({}, {"converted_from": {"experiment": "older"}}, 0, "0 computed again"),
    ):
        tables.write(found.path, type(found.rows[0]), [replace(found.rows[0], **change), *found.rows[1:]], found.origin | origin)
        assert status(line) == code, said
        told = capsys.readouterr()
        assert said in told.err + told.out and told.err.count(found.path.name) == told.err.count("\n") == code // 2


def test_every_stored_table_and_record_is_as_it_was_written(capsys):
    assert status(["results", "verify", "--digests", "--results", str(ROOT / "book" / "results")]) == 0


CLAIMED = {
    "thesis2026": {
        "projection", "draft_step", "eager", "deferred", "deferred_dense / eager_dense", "deferred_flash / eager_flash",
    },
    "yan2024decoding": {"headline", "most", "tuned", "wide_rate / deep_rate", "deep_draft_ms / wide_draft_ms", "accuracy"},
    "hispec2025": {"over_self", "most", "over_plain", "quarter"},
}  # fmt: skip


def rowless(rows):
    """What the works claim and no line of the scoreboard answers."""
    answered = {(claim["work"], claim["of"]) for claim in CLAIMS if claim["claim"] in set(rows["claim"])}
    return {(work, name) for work, made in CLAIMED.items() for name in made} - answered


def test_every_claim_of_the_three_works_has_a_line_with_its_number_its_label_and_a_reason(tmp_path):
    board = scoreboard()
    assert rowless(board) == set() and len(CLAIMED) == board["work"].nunique() == 3
    assert rowless(board.iloc[1:]) == {("thesis2026", "projection")}  # the control
    assert board["why"].str.len().gt(20).all() and board["source"].str.contains(r"\[[SNCI]\]$").all()
    printed = dict(zip(board["claim"], board["printed"], strict=True))
    assert printed["and the whole draft step"] == 1.108 and len(printed) == len(CLAIMS)
    assert printed["A deferred final token over an eager one, dense draft"] == 10.731 / 9.769
    assert set(scoreboard(tmp_path)["verdict"]) == {"not testable here"}  # without tables


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"])
def test_a_claim_is_answered_by_a_stored_table_or_says_that_it_is_not(claim):
    found = measured(claim)
    assert ("reading" in claim) == bool(len(found)) and found[["ratio", "low", "high"]].notna().all(axis=None)


@pytest.mark.parametrize(("printed", "verdict"), [(1.2, "agrees"), (1.31, "differs: less here"), (1.09, "differs: more here")])
def test_they_agree_where_the_interval_holds_the_printed_ratio(printed, verdict):
    line = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "1.20×", "temperature": 0.0}
    assert judged(printed, line) == {"sampling": "greedy", "measured": "1.20×", "verdict": verdict}
    assert judged(printed, {**line, "temperature": 1.0})["sampling"] == "T = 1"

"""Tables on disk: typed rows as CSV beside a JSON origin, whose existence means that the table is complete."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.model.writing import made, write_text
from flashspec.study.columns import Columns
from flashspec.study.parameters import Refused

ROOT: ContextVar[Path | None] = ContextVar("ROOT", default=None)


class Table(NamedTuple):
    """Rows of an experiment's row type, and the origin they were stored with."""

    rows: tuple[Any, ...]
    origin: dict[str, Any]


class Place(NamedTuple):
    """Where one table lives: `name`.csv, `name`.json and, while it is measured, `name`.part.jsonl."""

    folder: Path
    name: str

    @property
    def csv(self) -> Path:
        return self.folder / f"{self.name}.csv"

    @property
    def json(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.name}.part.jsonl"

    def beside(self, suffix: str) -> Place:
        """The same table as another machine saw it."""
        return Place(self.folder, f"{self.name}-{suffix}")


@contextmanager
def rooted(root: Path) -> Iterator[None]:
    """Let runs inside an experiment find and store their tables where that experiment's own table goes."""
    before = ROOT.set(root)
    try:
        yield
    finally:
        ROOT.reset(before)


def default_root() -> Path:
    """The root of a run in progress; else FLASHSPEC_RESULTS, else book/results of the nearest folder upwards that has a book."""
    if (inside := ROOT.get()) is not None:
        return inside
    if named := os.environ.get("FLASHSPEC_RESULTS"):
        return Path(named)
    here = Path.cwd()
    home = next((folder for folder in (here, *here.parents) if (folder / "book").is_dir()), here)
    return home / "book" / "results"


def read(place: Place, columns: Columns) -> Table | None:
    """The stored table; None if there is none or writing it was cut short; Refused if it is damaged."""
    if not place.json.exists():
        if place.csv.exists():
            warnings.warn(f"table {place.name} has no origin, so writing it was cut short: it is measured again", stacklevel=2)
        return None
    return Table(tuple(columns.parse(_rows(place, columns))), facts(place))


def facts(place: Place) -> dict[str, Any]:
    """The origin of a stored table, checked against the table's bytes."""
    try:
        found = json.loads(place.json.read_text())
        expected = found["csv_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(place, "its origin is not readable") from error
    if not place.csv.exists() or provenance.digest(place.csv) != expected:
        raise _damaged(place, "its rows are missing or do not match the digest in its origin")
    return found


def write(place: Place, columns: Columns, rows: Sequence[Any], origin: dict[str, Any]) -> None:
    """Store a table: the old origin goes first, then rows, then the new origin, each by temporary name, flush and rename."""
    place.folder.mkdir(parents=True, exist_ok=True)
    place.json.unlink(missing_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns.names)
    writer.writerows(columns.cells(row) for row in rows)
    write_text(text.getvalue(), place.csv)
    stamped = {**origin, "rows": len(rows), "columns": list(columns.names), "csv_sha256": provenance.digest(place.csv)}
    write_text(json.dumps(stamped, indent=2, sort_keys=True) + "\n", place.json)


class Journal:
    """Finished points of an unfinished table, one JSON line each; lines of other code or another machine are dropped."""

    def __init__(self, file: io.TextIOWrapper, header: dict[str, Any]) -> None:
        self.file = file
        self.done: dict[str, list[Any]] = {}
        file.seek(0)
        kept = list(_whole_lines(file))
        if kept[:1] == [header]:
            self.done = {line["point"]: line["rows"] for line in kept[1:]}
        self._rewrite([header, *({"point": p, "rows": r} for p, r in self.done.items())])

    def add(self, point: str, rows: list[Any]) -> None:
        """Record a finished point, flushed to disk before the next one starts."""
        self._append({"point": point, "rows": rows})
        self.done[point] = rows

    def _append(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        self.file.seek(0)
        self.file.truncate()
        for line in lines:
            self._append(line)


@contextmanager
def journal(place: Place, header: dict[str, Any]) -> Iterator[Journal]:
    """The place's journal, held by one process at a time; it is kept only by a failure after the first finished point."""
    with made(place.folder), place.journal.open("a+", encoding="utf-8") as file:
        _lock(file)
        held = None
        try:
            held = Journal(file, header)
            yield held
        except BaseException:
            if held is None or not held.done:
                place.journal.unlink(missing_ok=True)
            raise
        place.journal.unlink(missing_ok=True)


def _rows(place: Place, columns: Columns) -> list[list[str]]:
    facts(place)
    with place.csv.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if tuple(header) != columns.names:
        raise Refused(
            f"table {place.name} in {place.folder.name} has columns {', '.join(header)} but the experiment now makes "
            f"{', '.join(columns.names)}: delete the table or measure it afresh (--fresh)"
        )
    return rows


def _damaged(place: Place, why: str) -> Refused:
    return Refused(f"table {place.name} in {place.folder.name} is damaged, {why}: restore it or measure it afresh (--fresh)")


def _whole_lines(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for text in file:
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not text.endswith("\n") or not isinstance(line, dict):
            return
        yield line


def _lock(file: io.TextIOWrapper) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warnings.warn("another process is measuring this table: waiting for it", stacklevel=4)
        fcntl.flock(file, fcntl.LOCK_EX)

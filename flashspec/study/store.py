"""Tables on disk: typed rows as CSV beside a JSON origin, whose existence means that the table is complete."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.models.writing import write_text
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

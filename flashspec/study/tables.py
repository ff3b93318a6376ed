"""Tables on disk: one Parquet file each, typed rows, origin in the metadata, and a digest over every byte.

An unfinished table is a journal: its finished points, one JSON line each, held by one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from flashspec import provenance
from flashspec.models.writing import made, replaced, write_text
from flashspec.study.frames import DataFrame, framed
from flashspec.study.parameters import Refused, hints

ORIGIN, SEAL, BLANK = b"flashspec", b"flashspec-sha256:", b"0" * 64
ARROW = {bool: "bool_", int: "int64", float: "float64", str: "string"}


@dataclass(frozen=True)
class Results:
    """Rows of one experiment, at least one, where they come from, and the file that holds them."""

    rows: tuple[Any, ...]
    origin: dict[str, Any]
    path: Path

    @cached_property
    def frame(self) -> DataFrame:
        """The rows as a pandas frame, one typed column a field."""
        kinds = columns(type(self.rows[0])).items()
        numbers = {name: float for name, (kind, optional) in kinds if optional and kind in (int, float)}
        return framed([vars(row) for row in self.rows]).astype(numbers)

    @property
    def machine(self) -> str:
        """Processor, cores, instruction set, device and day, for a caption."""
        return provenance.describe(self.origin)


def default_root() -> Path:
    """FLASHSPEC_RESULTS, else book/results of the nearest folder upwards that has a book."""
    if named := os.environ.get("FLASHSPEC_RESULTS"):
        return Path(named)
    here = Path.cwd()
    home = next((folder for folder in (here, *here.parents) if (folder / "book").is_dir()), here)
    return home / "book" / "results"


def columns(row: type) -> dict[str, tuple[type, bool]]:
    """The columns of a row type: bool, int, float or str, and whether there may be nothing."""
    found = {}
    for name, hint in hints(row).items():
        options = get_args(hint) or (hint,)
        found[name] = (next(kind for kind in options if kind is not NoneType), NoneType in options)
    return found


def cells(row: Any, kind: type) -> dict[str, Any]:
    """A row's values in the types of their columns; TypeError where one has another type."""
    import msgspec

    try:
        plain = msgspec.to_builtins(row, enc_hook=methodcaller("item"))  # numbers of numpy and torch
        return msgspec.to_builtins(msgspec.convert(plain, kind))
    except msgspec.ValidationError as error:
        raise TypeError(f"this is no row of type {kind.__name__}: {error}") from error


def write(path: Path, kind: type, rows: Sequence[Any], origin: dict[str, Any]) -> Results:
    """Store a table in one step: temporary name, flush, rename."""
    origin = {**origin, "rows": len(rows), "columns": list(columns(kind))}
    data = _sealed(kind, rows, origin)
    with made(path.parent), replaced(path) as part:
        part.write_bytes(data)
    return Results(tuple(rows), origin, path)


def read(path: Path, kind: type) -> Results | None:
    """The stored table; None if there is none; Refused if it is damaged or has other columns."""
    if not path.exists():
        return None
    table, origin = opened(path)
    if other := set(table.column_names) ^ set(columns(kind)):
        raise Refused(
            f"table {path.name} in {path.parent.name} has other columns than the experiment now makes "
            f"({', '.join(sorted(other))}): delete it or measure it afresh (--fresh)"
        )
    return Results(tuple(kind(**line) for line in table.to_pylist()), origin, path)


def opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """A file's Arrow table and origin; Refused in one sentence if a single bit of it is not as it was written."""
    data = path.read_bytes()
    if not intact(data):
        raise Refused(
            f"table {path.name} in {path.parent.name} is damaged, its bytes do not match the digest in it: "
            "restore it or measure it afresh (--fresh)"
        )
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(pyarrow.BufferReader(data))
    return table, json.loads(table.schema.metadata[ORIGIN])


def intact(data: bytes) -> bool:
    """Whether the bytes of a file still match its digest."""
    at = data.rfind(SEAL) + len(SEAL)
    blank = data[:at] + BLANK + data[at + 64 :]
    return data.count(SEAL) == 1 and hashlib.sha256(blank).hexdigest().encode() == data[at : at + 64]


def listed(root: Path | None = None) -> DataFrame:
    """One line per stored table: what it is, where, when, from which code and in how many seconds it was made."""
    columns, lines = ["table", "rows", "kind", "origin", "commit", "seconds"], []
    for path in sorted((root or default_root()).glob("*/*.parquet")):
        facts = opened(path)[1]
        kind = "measured" if facts["measured"] else "function of the source"
        commit = (facts.get("commit") or "unknown")[:8] + (" and changes" if facts.get("dirty") else "")
        made = (provenance.describe(facts), commit, round(facts["duration_s"]))
        lines.append((f"{path.parent.name}/{path.stem}", facts["rows"], kind, *made))
    return framed(lines, columns).set_index("table")


def _sealed(kind: type, rows: Sequence[Any], origin: dict[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    fields = [pyarrow.field(name, getattr(pyarrow, ARROW[of])(), optional) for name, (of, optional) in columns(kind).items()]
    table = pyarrow.Table.from_pylist([cells(row, kind) for row in rows], pyarrow.schema(fields))
    sink = pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({ORIGIN: json.dumps(origin, sort_keys=True), "seal": SEAL + BLANK})
    data = sink.getvalue().to_pybytes()
    if data.count(SEAL + BLANK) != 1:
        raise ValueError(f"a table may not hold the text {SEAL.decode()!r}, which marks the digest of its file")
    at = data.index(SEAL) + len(SEAL)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


class Journal:
    """Rows of finished points by their keys, as stored in a file; lines under another header are dropped."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, kept = path, _whole_lines(path)
        kept = kept if kept[:1] == [header] else [header]
        self.done: dict[str, list[Any]] = {line["point"]: line["rows"] for line in kept[1:]}
        write_text("".join(json.dumps(line) + "\n" for line in kept), path)

    def add(self, point: str, rows: list[Any]) -> None:
        """Record a finished point, flushed to disk before the next one starts."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"point": point, "rows": rows}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[point] = rows


@contextmanager
def journal(path: Path, header: dict[str, Any]) -> Iterator[Journal]:
    """A file's journal, held by one process at a time; it is kept only if a failure follows its first row."""
    with made(path.parent), _lock(path):
        found = Journal(path, header)
        try:
            yield found
        except BaseException:
            if not any(found.done.values()):
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _lock(path: Path) -> Any:
    """A lock of a file's own, with a warning where another process holds it now."""
    from filelock import FileLock, Timeout

    name = provenance.short_hash([str(path.resolve()), getattr(os, "getuid", int)()])
    lock = FileLock(Path(tempfile.gettempdir()) / f"flashspec-{name}.lock")
    try:
        with lock.acquire(blocking=False):
            return lock
    except Timeout:
        warnings.warn("another process is measuring this table: waiting for it", stacklevel=5)
        return lock


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, up to the first that is cut or unreadable."""
    found = list[dict[str, Any]]()
    with suppress(FileNotFoundError, TypeError, ValueError):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            found.append(dict(json.loads(text.removesuffix("\n") if text.endswith("\n") else "")))
    return found

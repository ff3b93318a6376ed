"""Tables on disk: one Parquet file each, typed rows, origin in the metadata, and a digest over every byte."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from types import NoneType
from typing import IO, Any, get_args

import numpy as np

from flashspec import provenance
from flashspec.models.folder import first_line
from flashspec.models.writing import made, replaced
from flashspec.parameters import Refused, hints
from flashspec.study.frames import DataFrame, framed

ORIGIN, SEAL, BLANK = b"flashspec", b"flashspec-sha256:", b"0" * 64
SCHEMA = 1  # of a table's file; a file that names none is of the first
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


def default_root(here: Path | None = None) -> Path:
    """FLASHSPEC_RESULTS, else book/results of the nearest folder upwards from `here` that has a book."""
    if named := os.environ.get("FLASHSPEC_RESULTS"):
        return Path(named)
    here = here or Path.cwd()
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
    lines = [cells(row, kind) for row in rows]
    origin = {**origin, "schema": SCHEMA, "rows": len(rows), "columns": list(columns(kind))}
    data = _sealed(kind, lines, origin)
    with made(path.parent), replaced(path) as part:
        part.write_bytes(data)
    return Results(tuple(kind(**line) for line in lines), origin, path)


def read(path: Path, kind: type) -> Results | None:
    """The stored table, columns that it lacks at their defaults; None if there is none.

    Refused if it is damaged, of a later schema, has a column that `kind` has not, or lacks one without a default.
    """
    if not path.exists():
        return None
    table, origin = opened(path)
    had, needed = set(table.column_names), {field.name for field in fields(kind) if field.default is MISSING}
    if other := (had - columns(kind).keys()) | (needed - had):
        raise Refused(
            f"table {path.name} in {path.parent.name} has other columns than the experiment now makes "
            f"({', '.join(sorted(other))}): delete it or measure it afresh (--fresh)"
        )
    return Results(tuple(kind(**line) for line in table.to_pylist()), origin, path)


def opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """A file's Arrow table and origin; Refused in one sentence if a single bit of it is not as it was written."""
    data, where = path.read_bytes(), f"table {path.name} in {path.parent.name}"
    if not intact(data):
        raise Refused(f"{where} is damaged, its bytes do not match the digest in it: restore it or measure it afresh (--fresh)")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(data)).read(use_threads=False)
        origin = dict(json.loads(table.schema.metadata[ORIGIN]))
        schema = int(origin.get("schema", 1))
    except (pyarrow.ArrowException, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{where} has a sound digest and is no table of ours ({first_line(error)}): restore it") from None
    if schema > SCHEMA:
        writer = (origin.get("versions") or {}).get("flashspec", "another")
        raise Refused(f"{where} has schema {schema} of flashspec {writer}, this one reads up to {SCHEMA}: install that one")
    return table, origin


def consistent(path: Path) -> tuple[Any, dict[str, Any]]:
    """Table and origin of a file; Refused where they are damaged, or the origin is about another file."""
    table, facts = opened(path)
    here = (path.parent.name, path.stem.partition("-")[0])
    said = (facts.get("experiment", here[0]), facts.get("key", here[1]))
    if said != here and path.parent.name != "points":  # where a sweep names the files
        raise Refused(f"table {path.name} in {path.parent.name} calls itself {'/'.join(said)}: put it back, or restore it")
    return table, facts


def intact(data: bytes) -> bool:
    """Whether the bytes of a file still match its digest."""
    at = data.rfind(SEAL) + len(SEAL)
    blank = data[:at] + BLANK + data[at + 64 :]
    return data.count(SEAL) == 1 and hashlib.sha256(blank).hexdigest().encode() == data[at : at + 64]


def listed(root: Path | None = None) -> DataFrame:
    """One line per stored table: what it is, and where, when, from which code and how fast it was made."""
    columns, lines = ["table", "rows", "kind", "origin", "commit", "seconds"], []
    for path in sorted((root or default_root()).rglob("*.parquet")):
        facts = opened(path)[1]
        kind = "measured" if facts["measured"] else "function of the source"
        commit = (facts.get("commit") or "unknown")[:8] + (" and changes" if facts.get("dirty") else "")
        made = (provenance.describe(facts), commit, round(facts.get("duration_s", 0)))
        lines.append((f"{path.parent.name}/{path.stem}", facts["rows"], kind, *made))
    return framed(lines, columns).set_index("table")


def unlike_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each parameter and each fact of the origin that two tables, A and B, do not share."""
    import pandas

    flat = [pandas.json_normalize(dict(facts)).to_dict("records")[0] for facts in (one, other)]
    for name in sorted({*flat[0], *flat[1]}):
        if flat[0].get(name, flat) != flat[1].get(name, flat):
            here, there = (f"{facts[name]!r:.200}" if name in facts else "not said" for facts in flat)
            what = f"parameter {name[7:]}" if name.startswith("params.") else f"origin: {name}"
            yield f"{what} is {here} in A and {there} in B"


def unlike_rows(one: DataFrame, other: DataFrame, near: float = 0.0) -> Iterator[str]:
    """One sentence for each difference between two tables' rows; numbers are equal within `near`, relative."""
    for name, here, there in (("A", one, other), ("B", other, one)):
        if alone := [column for column in here if column not in there]:
            yield f"{name} alone has the columns {', '.join(alone)}"
    shared = [column for column in one if column in other]
    if len(one) != len(other):
        words = one[shared].select_dtypes(exclude="floating").columns  # what no clock moves
        mine, theirs = (Counter(map(tuple, frame[words].astype(str).to_numpy())) for frame in (one, other))
        apart = f"{(mine - theirs).total()} rows are in A alone, {(theirs - mine).total()} rows are in B alone"
        yield f"A has {len(one)} rows and B has {len(other)}: {apart}"
        return
    for column in shared:
        here, there = one[column].to_numpy(), other[column].to_numpy()
        like = (here == there) | (one[column].isna() & other[column].isna()).to_numpy()
        if near and here.dtype.kind == there.dtype.kind == "f":
            like |= np.isclose(here, there, rtol=near, atol=0)
        if len(rows := np.flatnonzero(~like)):
            said = f"first in row {rows[0]}, {here[rows[0]]} in A and {there[rows[0]]} in B"
            yield f"{column} differs in {len(rows)} of {len(one)} rows, {said}"


def _sealed(kind: type, lines: list[dict[str, Any]], origin: dict[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    fields = [pyarrow.field(name, getattr(pyarrow, ARROW[of])(), optional) for name, (of, optional) in columns(kind).items()]
    table = pyarrow.Table.from_pylist(lines, pyarrow.schema(fields))
    sink = pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({ORIGIN: json.dumps(origin, sort_keys=True), "seal": SEAL + BLANK})
    data = sink.getvalue().to_pybytes()
    if data.count(SEAL + BLANK) != 1:
        raise ValueError(f"a table may not hold the text {SEAL.decode()!r}, which marks the digest of its file")
    at = data.index(SEAL) + len(SEAL)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


@contextmanager
def held(place: Path, wait: bool = True) -> Iterator[None]:
    """A place for one process at a time on any machine; another one waits with a warning, or is Refused."""
    lock = place.with_name(f"{place.name}.lock")
    with made(place.parent), _locked(lock, wait):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path, wait: bool) -> IO[bytes]:
    """The file, made where there is none, open and locked."""
    import fcntl

    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # whoever held it has finished and removed it, or its folder
            file = lock.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Refused(f"another runner is at work in {lock.parent}; wait for it, or give another --out") from None
                warnings.warn("another process is measuring this table: waiting for it", stacklevel=5)
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file

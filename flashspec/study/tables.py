"""Tables on disk: one Parquet file each, typed rows, origin in the schema metadata, and a digest over every byte of the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashspec.models.writing import made, replaced
from flashspec.study.columns import Columns
from flashspec.study.parameters import Refused
from flashspec.study.store import Place, Table

ORIGIN, SEAL, BLANK = b"flashspec", b"flashspec-sha256:", b"0" * 64
ARROW = {bool: "bool_", int: "int64", float: "float64", str: "string"}


def path_of(place: Place) -> Path:
    """The file of a table."""
    return place.folder / f"{place.name}.parquet"


def write(place: Place, columns: Columns, rows: Sequence[Any], origin: dict[str, Any]) -> None:
    """Store a table in one step: temporary name, flush, rename."""
    path = path_of(place)
    with made(path.parent), replaced(path) as part:
        part.write_bytes(_sealed(columns, rows, {**origin, "rows": len(rows), "columns": list(columns.names)}))


def read(place: Place, columns: Columns) -> Table | None:
    """The stored table; None if there is none; Refused if it is damaged or has other columns."""
    path = path_of(place)
    if not path.exists():
        return None
    table, origin = opened(path)
    if tuple(table.column_names) != columns.names:
        other = sorted(set(table.column_names) ^ set(columns.names))
        raise Refused(
            f"table {path.name} in {path.parent.name} has other columns than the experiment now makes ({', '.join(other)}): "
            "delete it or measure it afresh (--fresh)"
        )
    return Table(tuple(columns.row(**cells) for cells in table.to_pylist()), origin)


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
    """Whether the bytes of a file are those that its digest was taken of."""
    at = data.rfind(SEAL) + len(SEAL)
    blank = data[:at] + BLANK + data[at + 64 :]
    return data.count(SEAL) == 1 and hashlib.sha256(blank).hexdigest().encode() == data[at : at + 64]


def _sealed(columns: Columns, rows: Sequence[Any], origin: dict[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    fields = [pyarrow.field(name, getattr(pyarrow, ARROW[kind])(), open) for name, (kind, open) in columns.kinds.items()]
    cells = {name: [columns.checked(name, getattr(row, name)) for row in rows] for name in columns.names}
    table, sink = pyarrow.table(cells, pyarrow.schema(fields)), pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({ORIGIN: json.dumps(origin, sort_keys=True), "seal": SEAL + BLANK})
    data = sink.getvalue().to_pybytes()
    if data.count(SEAL + BLANK) != 1:
        raise ValueError(f"a table may not hold the text {SEAL.decode()!r}, which marks the digest of its file")
    at = data.index(SEAL) + len(SEAL)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]

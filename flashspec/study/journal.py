"""Finished points of an unfinished table, one JSON line each, held by one process at a time."""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashspec import provenance
from flashspec.models.writing import made


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
def journal(path: Path, header: dict[str, Any]) -> Iterator[Journal]:
    """The journal in a file, held by one process at a time; it is kept only by a failure after the first row."""
    with made(path.parent), _held(path), path.open("a+", encoding="utf-8") as file:
        found = None
        try:
            found = Journal(file, header)
            yield found
        except BaseException:
            if found is None or not any(found.done.values()):
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    name = provenance.short_hash([str(path.resolve()), getattr(os, "getuid", int)()])
    lock = FileLock(Path(tempfile.gettempdir()) / f"flashspec-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        warnings.warn("another process is measuring this table: waiting for it", stacklevel=5)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _whole_lines(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for text in file:
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not text.endswith("\n") or not isinstance(line, dict):
            return
        yield line

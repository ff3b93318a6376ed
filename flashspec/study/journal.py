"""Finished points of an unfinished table, one JSON line each, held by one process at a time."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flashspec import provenance
from flashspec.models.writing import made, write_text


class Journal:
    """Rows of finished points by the points' keys, as a file holds them; lines under another header are dropped."""

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
    """The journal in a file, held by one process at a time; it is kept only by a failure after the first row."""
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

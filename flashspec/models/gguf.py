"""GGUF files: metadata and tensors of one model in one file, read without copying; everything is checked before use.

The format is ggml's (versions 2 and 3). The `gguf` library would take seconds for a vocabulary's strings.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
AGAIN = "the file is damaged, or not a GGUF file: fetch it again"
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
NAMES, ALIGNMENTS = 65_536, [1 << n for n in range(21)]
# ggml's number of a type: its name, the columns of a block and the block's bytes
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor in the file: type, shape [rows, columns] or [columns], and first byte."""

    type: str
    shape: tuple[int, ...]
    start: int
    row_bytes: int


_cached = lru_cache(maxsize=4)(lambda path, size, changed: Gguf(path))


def opened(path: Path) -> Gguf:
    """A file's facts and tensors, cached until the file changes."""
    about = path.stat()
    return _cached(path, about.st_size, about.st_mtime_ns)


class Gguf:
    """An open file's `facts` by key and `tensors` by name.

    Raises ValueError for a file that is cut, damaged, or of an unknown kind.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 4
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ValueError(f"{path} does not begin with the letters GGUF; {AGAIN}")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        version = self._whole(4)
        if version not in VERSIONS:
            raise ValueError(f"{path} is GGUF of version {version}, readable are 2 and 3; convert it with a current llama.cpp")
        tensors, facts = self._whole(8), self._whole(8)
        if max(tensors, facts) > NAMES:
            raise ValueError(f"{path} announces {tensors} tensors and {facts} facts, a model has fewer than {NAMES}; {AGAIN}")
        self.facts: dict[str, Any] = {}
        for _ in range(facts):
            key = self._string()
            if key in self.facts:
                raise ValueError(f"{path} gives {key[:40]!r} twice; {AGAIN}")
            kind = self._whole(4)
            self.facts[key] = self._list(self._whole(4), self._whole(8)) if kind == ARRAY else self._list(kind, 1)[0]
        self.tensors = self._tensors(tensors)

    def rows(self, name: str) -> np.ndarray:
        """A tensor's bytes [rows, bytes per row], in place in the file."""
        entry = self.tensors[name]
        rows = prod(entry.shape[:-1])
        return np.frombuffer(self._bytes, np.uint8, rows * entry.row_bytes, entry.start).reshape(rows, entry.row_bytes)

    def _take(self, size: int) -> int:
        at = self._at
        if size > len(self._bytes) - at:
            raise ValueError(f"{self.path} ends at byte {len(self._bytes)} inside what it announces; {AGAIN}")
        self._at = at + size
        return at

    def _whole(self, size: int) -> int:
        at = self._take(size)
        return int.from_bytes(self._bytes[at : at + size], "little")

    def _string(self) -> str:
        size = self._whole(8)
        at = self._take(size)
        try:
            return self._bytes[at : at + size].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} holds text that is not UTF-8 at byte {at}; {AGAIN}") from None

    def _list(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind not in NUMBERS:
            raise ValueError(f"{self.path} holds facts of the type {kind}, which is not read; {AGAIN}")
        form = np.dtype(NUMBERS[kind])
        at = self._take(form.itemsize * count)
        return list(np.frombuffer(self._bytes, form, count, at).tolist())

    def _tensors(self, count: int) -> dict[str, Entry]:
        told = {}
        for _ in range(count):
            name, dimensions = self._string(), self._whole(4)
            if dimensions not in (1, 2) or name in told:
                raise ValueError(f"{self.path} gives tensor {name[:40]!r} {dimensions} dimensions, or gives it twice; {AGAIN}")
            told[name] = [self._whole(8) for _ in range(dimensions)], self._whole(4), self._whole(8)
        step = self.facts.get("general.alignment", 32)
        if step not in ALIGNMENTS:
            raise ValueError(f"{self.path} aligns its tensors at {step!r}, expected a power of two; {AGAIN}")
        start = -(-self._at // step) * step
        return {name: self._entry(name, *facts, start) for name, facts in told.items()}

    def _entry(self, name: str, sizes: list[int], number: int, offset: int, start: int) -> Entry:
        if number not in TYPES:
            known = ", ".join(kind for kind, *_ in TYPES.values())
            raise ValueError(f"{self.path}: tensor {name[:40]!r} has ggml's type {number}; readable are {known}")
        kind, columns, size = TYPES[number]
        if not all(sizes) or sizes[0] % columns:
            raise ValueError(f"{self.path}: tensor {name[:40]!r} has the shape {sizes}, which no {kind} matrix has; {AGAIN}")
        row_bytes = sizes[0] // columns * size
        if start + offset + row_bytes * prod(sizes[1:]) > len(self._bytes):
            raise ValueError(f"{self.path}: tensor {name[:40]!r} lies behind the end of the file; {AGAIN}")
        return Entry(kind, tuple(reversed(sizes)), start + offset, row_bytes)

"""Outputs that are complete or absent: checked before any work, written under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from flashspec.provenance import digest

WEIGHTS = ("*.safetensors", "*.gguf")
UNFINISHED = ".flashspec-part"


def expanded(path: str | Path) -> Path:
    """A path with its leading ~ replaced by the home folder; ValueError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with a home folder that nobody knows here; give the whole path") from None


def _weights(folder: Path) -> list[Path]:
    return [path for kind in WEIGHTS for path in folder.glob(kind)]


def refuse_input(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a place that is, contains or is inside one of the inputs, or is inside any checkpoint folder."""
    place = out.resolve()
    for source in inputs:
        read = source.resolve()
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise ValueError(f"{out} is, holds or lies in {source}, which this command reads; give a place of its own")
    for folder in place.parents:
        if (folder / "config.json").is_file() and _weights(folder):
            raise ValueError(f"{out} lies in {folder}, which holds a checkpoint; give a place of its own")


def refuse_taken(folder: Path, ours: str = "") -> None:
    """Refuse a folder with content; one with the file `ours` and no weights may be used or replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file and a folder is to be written; give another name")
    mine = ours and (folder / ours).is_file() and not _weights(folder)
    if not mine and any(not path.name.endswith(UNFINISHED) for path in folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already; give a new folder, or remove that one")


def check_free(out: Path, inputs: Iterable[Path] = (), ours: str = "") -> None:
    """Refuse a folder as `refuse_input` and `refuse_taken` do."""
    refuse_input(out, inputs)
    refuse_taken(out, ours)


@contextmanager
def fresh_folder(out: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder under a temporary name that becomes `out` when the block ends; `check_free` is called first."""
    check_free(out, inputs)
    place = out.resolve()
    refuse_input(_unfinished(place), inputs)
    with made(place.parent), replaced(place) as part:
        part.mkdir()
        yield part
        refuse_taken(place)


@contextmanager
def new_file(path: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Like `replaced`, for a file that does not exist yet and is in no input."""
    refuse_input(path, inputs)
    if path.exists():
        raise FileExistsError(f"{path} is there already; give another name, or remove it")
    with made(path.parent), replaced(path) as part:
        part.touch()
        yield part


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that replaces it when the block ends, unless it raises."""
    part = _unfinished(path)
    _remove(part)
    try:
        yield part
        for written in (part, *part.rglob("*")):
            number = os.open(written, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        if part.is_dir():
            _remove(path)
        part.replace(path)
    except BaseException:
        _remove(part)
        raise


def write_text(text: str, path: Path) -> None:
    """Replace a file by a text; line ends are kept."""
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(value: Any, path: Path) -> None:
    """Replace a file by indented JSON."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, facts: dict[str, str] | None = None) -> None:
    """Replace a safetensors file, with `facts` in its header."""
    from safetensors.torch import save_file

    with replaced(path) as part:
        save_file(dict(tensors), part, facts)
        part.chmod(0o644)


def carry(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that the source has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_digests(folder: Path) -> None:
    """Write digests.json with the SHA-256 of every other file of the folder; loading the folder checks it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "digests.json")
    write_json({path.name: digest(path) for path in files if not path.name.startswith(".")}, folder / "digests.json")


@contextmanager
def extended(source: Path, out: Path, name: str) -> Iterator[Path]:
    """The place of one more file, of this name, in a copy of a checkpoint that becomes `out` when the block ends.

    Weights are hard links, if possible, the rest copies; the copy's digests.json, if it has one, gets the new file's digest.
    """
    weights, files = (_weights(source), source.iterdir()) if source.is_dir() else ([source], iter([source]))
    with fresh_folder(out, [source]) as part:
        for path in [path for path in files if path.is_file() and not path.name.startswith(".")]:
            with suppress(OSError):
                if path in weights:
                    (part / path.name).hardlink_to(path.resolve())
            if not (part / path.name).exists():
                shutil.copyfile(path, part / path.name)
        yield part / name
        if (signed := part / "digests.json").is_file():
            write_json({**json.loads(signed.read_bytes()), name: digest(part / name)}, signed)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder made for the block; if the block raises, the parents made for it are removed again."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}{UNFINISHED}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()

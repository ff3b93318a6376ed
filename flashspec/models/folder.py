"""What lies in a checkpoint folder: JSON files, digests, and safetensors read one tensor at a time. Pickle is never read."""

from __future__ import annotations

import json
import os
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import Tensor

from flashspec.models.files import AGAIN, Digests, Index, T, shaped
from flashspec.provenance import digest

FLOATS = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
INTEGERS = ("I32",)


def read_config(folder: Path) -> dict[str, Any]:
    """The dictionary of folder/config.json; FileNotFoundError or ValueError in words when there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder at {folder}; give a folder with config.json and safetensors")
    raw = read_json(folder / "config.json", "every Hugging Face checkpoint has one: copy the whole folder")
    return shaped(raw, dict[str, Any], folder / "config.json")


def read_json(path: Path, advice: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {advice}")
    return parsed(path.read_bytes(), path)


def read_as(path: Path, kind: type[T], advice: str = AGAIN) -> T:
    """A JSON file's value of this type; ValueError with the place of what is wrong in it."""
    return shaped(parsed(path.read_bytes(), path, advice), kind, path, advice)


def parsed(text: str | bytes, path: Path, advice: str = AGAIN) -> Any:
    """What JSON from this file says; ValueError where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {advice}") from None


def first_line(error: Exception) -> str:
    """The first line of another library's message, without characters that no terminal shows."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def verify_digests(folder: str | Path) -> None:
    """Compare the folder's files with its digests.json ({file: sha256}); nothing to do where there is none.

    Raises FileNotFoundError for a listed file that is missing and ValueError for one that differs.
    """
    path = Path(folder) / "digests.json"
    if not path.is_file():
        return
    for name, expected in read_as(path, Digests).items():
        file = inside(Path(folder), name, path)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed in digests.json but missing; copy the whole folder again")
        found = digest(file)
        if found != expected:
            raise ValueError(
                f"{file} has SHA-256 {found[:12]}..., digests.json expects {expected[:12]}...; "
                "the file is damaged or was replaced: fetch it again"
            )


def inside(folder: Path, name: str, told: Path) -> Path:
    """The file that `told` puts under this name in a folder; ValueError for one that would lie anywhere else.

    A link may lead to the folder itself or, in the cache of a model hub, to the blobs beside its snapshots.
    """
    parts = PureWindowsPath(name)
    homes = [folder] + ([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])
    plain = name.isprintable() and len(name) < 256 and not parts.anchor and "\\" not in name and ".." not in parts.parts
    if plain and any(Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(home)) for home in homes):
        return folder / name
    raise ValueError(f"{told} names {name[:99]!r}, which lies outside its folder; put the file into the folder itself")


def read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file and the facts of its header; ValueError in words where it is damaged."""
    with _opened(path, advice) as file:
        return {name: _whole(file, name, path) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _opened(path: Path, advice: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({first_line(error)}); {advice}") from None


def _whole(file: Any, name: str, path: Path) -> Tensor:
    """One tensor of an open file; ValueError for numbers that torch does not have."""
    try:
        return file.get_tensor(name)
    except Exception as error:  # safetensors passes on what torch raises
        raise ValueError(f"tensor {name!r} in {path} cannot be read ({first_line(error)}); fetch the file again") from None


class Tensors:
    """The named tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        index = self._index()
        self.where = {name: path for path in self._files(index) for name in list(self._handle(path).keys())}
        for name, path in index.items():
            if self.where.get(name) != path:
                raise ValueError(f"tensor {name!r} is not in {path}, where the index puts it; copy the folder again")

    def _index(self) -> dict[str, Path]:
        path = self.folder / "model.safetensors.index.json"
        if (self.folder / "model.safetensors").is_file() or not path.is_file():
            return {}
        table = read_as(path, Index).weight_map
        files = {file: inside(self.folder, file, path) for file in set(table.values())}
        return {name: files[file] for name, file in table.items()}

    def _files(self, index: dict[str, Path]) -> list[Path]:
        whole = self.folder / "model.safetensors"
        files = sorted(set(index.values())) or ([whole] if whole.is_file() else [])
        if not files:
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))
            advice = "pickled weights are never read: convert them to safetensors" if pickled else "copy the whole folder"
            raise FileNotFoundError(f"{self.folder} holds neither model.safetensors nor its index; {advice}")
        return files

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is named in the index but missing; copy the whole folder again")
            self._open[path] = _opened(path, "fetch it again")
        return self._open[path]

    def need(self, name: str) -> Any:
        """The open file that holds the tensor of this name; ValueError where none does."""
        if name not in self.where:
            raise ValueError(f"tensor {name} is missing from {self.folder}; the checkpoint does not match its config.json")
        return self._handle(self.where[name])

    def read(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...] = FLOATS) -> Tensor:
        """The tensor of this name; ValueError when it is missing, has another shape or holds other numbers."""
        stored = self.need(name).get_slice(name)
        if (found := tuple(stored.get_shape())) != shape:
            raise ValueError(
                f"tensor {name} in {self.where[name]} has shape {list(found)}, config.json implies {list(shape)}; "
                "the file and config.json belong to different models"
            )
        if stored.get_dtype() not in kinds:
            raise ValueError(
                f"tensor {name} in {self.where[name]} holds {stored.get_dtype()} numbers, expected {' or '.join(kinds)}; "
                "use a checkpoint in one of these"
            )
        return self.any(name)

    def any(self, name: str) -> Tensor:
        """The tensor of this name, whatever it holds."""
        return _whole(self.need(name), name, self.where[name])

"""What lies in a checkpoint folder: JSON files, digests, and safetensors read one tensor at a time. Pickle is never read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from flashspec.provenance import digest


def read_config(folder: Path) -> dict[str, Any]:
    """The dictionary of folder/config.json; FileNotFoundError or ValueError in words when there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder at {folder}; give a folder with config.json and safetensors")
    raw = read_json(folder / "config.json", "every Hugging Face checkpoint has one: copy the whole folder")
    if not isinstance(raw, dict):
        raise ValueError(f"{folder / 'config.json'} does not hold an object; copy the file again from its source")
    return raw


def read_json(path: Path, advice: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {advice}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the file again from its source") from None


def first_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def verify_digests(folder: str | Path) -> None:
    """Compare the folder's files with its digests.json ({file: sha256}); nothing to do where there is none.

    Raises FileNotFoundError for a listed file that is missing and ValueError for one that differs.
    """
    path = Path(folder) / "digests.json"
    if not path.is_file():
        return
    for name, expected in read_json(path, "").items():
        file = Path(folder) / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed in digests.json but missing; copy the whole folder again")
        found = digest(file)
        if found != expected:
            raise ValueError(
                f"{file} has SHA-256 {found[:12]}..., digests.json expects {expected[:12]}...; "
                "the file is damaged or was replaced: fetch it again"
            )


class Tensors:
    """The named tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self.where = {name: path for path in self._files() for name in list(self._handle(path).keys())}
        for name, path in self._index().items():
            if self.where.get(name) != path:
                raise ValueError(f"tensor {name} is not in {path}, where the index puts it; copy the folder again")

    def _index(self) -> dict[str, Path]:
        path = self.folder / "model.safetensors.index.json"
        if (self.folder / "model.safetensors").is_file() or not path.is_file():
            return {}
        table = read_json(path, "").get("weight_map")
        if not table:
            raise ValueError(f"{path} has no weight_map; copy the file again from its source")
        return {name: self.folder / file for name, file in table.items()}

    def _files(self) -> list[Path]:
        whole = self.folder / "model.safetensors"
        files = sorted(set(self._index().values())) or ([whole] if whole.is_file() else [])
        if not files:
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))
            advice = "pickled weights are never read: convert them to safetensors" if pickled else "copy the whole folder"
            raise FileNotFoundError(f"{self.folder} holds neither model.safetensors nor its index; {advice}")
        return files

    def _handle(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._open:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is named in the index but missing; copy the whole folder again")
            try:
                self._open[path] = safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from None
        return self._open[path]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name; ValueError when it is missing or has another shape."""
        if name not in self.where:
            raise ValueError(f"tensor {name} is missing from {self.folder}; the checkpoint does not match its config.json")
        handle = self._handle(self.where[name])
        found = tuple(handle.get_slice(name).get_shape())
        if found != shape:
            raise ValueError(
                f"tensor {name} in {self.where[name]} has shape {list(found)}, config.json implies {list(shape)}; "
                "the file and config.json belong to different models"
            )
        return handle.get_tensor(name)

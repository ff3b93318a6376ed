"""Names to folders: a path, or a model hub's name found in the local cache. Nothing is ever fetched."""

from __future__ import annotations

import re
from pathlib import Path

from flashspec.models.writing import expanded

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def cached(name: str) -> Path | None:
    """The folder of a hub name's newest snapshot in the local cache, None where there is none; no network is used."""
    if not HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def located(name: str | Path) -> Path:
    """The checkpoint folder of a path or a cached hub name; FileNotFoundError in words where there is neither."""
    folder = expanded(name)
    if (folder / "config.json").is_file():
        return folder
    found = cached(str(name))
    if found is not None:
        return found
    if HUB_NAME.fullmatch(str(name)) and not folder.is_dir():
        raise FileNotFoundError(
            f"no model at {str(name)!r}: there is no such folder and the local model cache does not hold this name; where there "
            f"is a network, `hf download {name}` fetches it (after `hf auth login` where its owner asks for consent)"
        )
    raise FileNotFoundError(f"no model at {str(name)!r} (no config.json); give a checkpoint folder or a cached hub name")

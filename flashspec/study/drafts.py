"""Drafts of one target by the names that tables use: the shipped ones, finished ones of a family, and folders the user names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flashspec.decoding.models import REFERENCE, SHIPPED, Models, check_tokenizers, folder_of, load, opened, rounding
from flashspec.measure.trace import target_digest
from flashspec.models.family import DESIGNED, Design
from flashspec.models.family import FAMILY as POINTS
from flashspec.study.pairs import DRAFTS

FAMILY = "runs/family/models"


class Pair(NamedTuple):
    """A draft beside its target: names and digests of both, the training steps the draft's folder tells (or None), models."""

    name: str
    digest: str
    steps: int | None
    models: Models
    target: str
    target_digest: str

    @property
    def facts(self) -> dict[str, Any]:
        """The columns that say which draft a row is about."""
        config = self.models.model("draft").config
        return {
            "draft": self.name,
            "digest": self.digest,
            "layers": config.layers,
            "body": config.body_parameters,
            "head_bytes": 2 * config.head_parameters,
            "steps": self.steps,
        }


def shipped() -> dict[str, Path]:
    """Every shipped draft whose folder is there, by the name that tables use."""
    names = {str(rounding(known)[0]): name for name, known in DRAFTS.items()}
    found = {names.get(name, name): SHIPPED / folder for name, folder in REFERENCE["draft"].items()}
    return {name: folder for name, folder in found.items() if (folder / "config.json").exists()}


def finished(folder: str) -> dict[str, Path]:
    """Finished drafts below a folder of this folder or one above it, by name; none where there is no such folder."""
    here = Path.cwd()
    home = next((place / folder for place in (here, *here.parents) if folder and (place / folder).is_dir()), None)
    found = sorted(path.parent for path in home.glob("*/digests.json")) if home else []
    return {path.name: path for path in found}


def point_of_designed() -> str | None:
    """The point of the family that ships as the designed draft, by its recipe; None while no such draft ships."""
    design = design_of(shipped()[DESIGNED]) if DESIGNED in shipped() else None
    return next((name for name, point in POINTS.items() if design is not None and point == Design(**design)), None)


def design_of(folder: Path) -> dict[str, Any] | None:
    """The recipe in a draft's folder; None for a draft that does not tell."""
    path = folder / "design.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["design"]) if path.exists() else None


def drafts_of(names: Sequence[str]) -> dict[str, Path]:
    """Folders of the named drafts; without names the shipped ones.

    Raises FileNotFoundError for a name that is neither shipped nor a folder, ValueError where two folders have one name.
    """
    if not names:
        return shipped()
    known = {name: shipped().get(name) or folder_of(DRAFTS.get(name, name), "draft") for name in names}
    found = {name if name in shipped() else folder.name: folder for name, folder in known.items()}
    if len(found) < len(names):
        raise ValueError(f"drafts need different names, got {', '.join(names)}; rename a folder or leave one out")
    return found


@lru_cache(maxsize=2)
def target_of(target: str, dtype: str, weights: str) -> Models:
    """A target without a draft, loaded once a process for each dtype."""
    return load(target, None, dtype=dtype, weights=weights)


def pair_of(name: str, folder: Path, alone: Models, target: str) -> Pair:
    """A draft beside a loaded target, whose weights are shared. Raises ValueError for another vocabulary or a bigger draft."""
    check_tokenizers(alone.folders["target"], folder)
    places = {**alone.folders, "draft": folder}
    dtype = str(alone.target.embed.weight.dtype).removeprefix("torch.")
    device = alone.target.device
    draft = opened(folder, dtype, str(device), form="int8" if device.type == "cpu" else "")
    models = Models(alone.target, draft, alone.tokenizer, places, exits=alone.exits, cut=alone.cut)
    design = design_of(folder)
    steps = None if design is None else int(design["steps"])
    return Pair(name, target_digest(folder), steps, models, target, target_digest(alone.folders["target"]))


def short_name(target: str) -> str:
    """What a table calls a target: a shipped name, or its folder's."""
    return target if target in REFERENCE["target"] else Path(target).name

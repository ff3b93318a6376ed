"""What is recorded of the family, whose weights do not ship: recipe, curve, digest and greedy proposals, as one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashspec.model.config import from_hf
from flashspec.study import store
from flashspec.study.readings import Missing
from flashspec.theory import replayed_all
from flashspec.train.shipping import stands_of

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = "family"


def recorded(k: int = 4, root: Path | None = None) -> DataFrame:
    """One line a point, the highest greedy TAR at k first, counted from its proposals. Missing where none is recorded."""
    import pandas

    places = sorted(path.parent for path in ((root or store.default_root()) / FOLDER).glob("*/proposals.json"))
    if not places:
        raise Missing("no point of the family is recorded; run `flashspec draft family`, then `flashspec draft record`")
    table = pandas.DataFrame([point(place, k) for place in places])
    return table.sort_values("TAR", ascending=False).set_index("draft")


def point(place: Path, k: int) -> dict[str, Any]:
    """Shape, training and acceptance of one record."""
    config = from_hf(json.loads((place / "config.json").read_text(encoding="utf-8")))
    path = place / "design.json"
    design = json.loads(path.read_text(encoding="utf-8"))["design"] if path.exists() else {}
    weights = json.loads((place / "digests.json").read_text(encoding="utf-8"))
    first = min(name for name in weights if name.endswith(".safetensors"))
    return {
        "draft": place.name,
        "layers": config.layers,
        "heads": config.heads,
        "ffn": config.ffn,
        "body": config.body_parameters,
        "head bytes": 2 * config.head_parameters,
        "steps": design.get("steps"),
        "distilled": design.get("distilled"),
        "TAR": replayed_all(stands_of(place), k).tar,
        "digest": weights[first][:12],
    }

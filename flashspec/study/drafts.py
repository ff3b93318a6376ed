"""A target and its drafts by the names that tables use: shipped names, and folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from flashspec.decoding.models import REFERENCE, SHIPPED, Models, check_tokenizers, folder_of, load, opened, rounding
from flashspec.kernels import Packed
from flashspec.measure.prompts import NAMED, Prompt, load_prompts
from flashspec.measure.trace import target_digest
from flashspec.models.folder import PAIRS
from flashspec.models.writing import expanded
from flashspec.typed import among

FAMILY = "runs/family/models"
TABLES = {"reference": "main"}  # what tables call a shipped draft that has another name there
KNOWN = {TABLES.get(name, name): SHIPPED / folder for name, folder in REFERENCE["draft"].items()}


def drafts_of(names: Sequence[str]) -> dict[str, Path]:
    """Folders of the named drafts; without names the shipped ones.

    Raises FileNotFoundError for a name that is neither shipped nor a folder, ValueError where two folders have one name.
    """
    found = dict[str, Path]()
    for name in names:
        (base, form), folder = rounding(name), KNOWN.get(name) or folder_of(name, "draft")
        own = f"{folder.name}:{form}" if form else folder.name
        found[name if base in (*KNOWN, *PAIRS) else own] = folder
    if len(found) < len(names):
        raise ValueError(f"drafts need different names, got {', '.join(names)}; rename a folder or leave one out")
    return found or KNOWN


def chains_of(names: Sequence[str]) -> list[dict[str, Path]]:
    """Folders of drafts by name; for a cascade the folders of its models, smallest first, where a name joins several by +."""
    joined = [tuple(name.split("+")) for name in names if "+" in name]
    alone = tuple(name for name in names if "+" not in name)
    singles = drafts_of(alone) if alone or not joined else {}
    return [{name: folder} for name, folder in singles.items()] + [drafts_of(chain) for chain in joined]


def folders(params: Any) -> dict[str, Path]:
    """Checkpoint folders of the targets and drafts that parameters name, and their prompts file; digests enter the origin."""
    targets = (params.target,) if isinstance(params.target, str) else params.target
    found = dict[str, Path]()
    for chain in chains_of(params.draft) if hasattr(params, "draft") else ():
        found |= chain
    for name in targets:
        short = short_name(name)
        found[f"target {short}" if short in found else short] = folder_of(name, "target")
    return found | prompts_file(getattr(params, "prompts", ""))


def prompts_file(name: str) -> dict[str, Path]:
    """A prompts file that is not a shipped one, by the name that parameters give it."""
    return {name: file} if name not in ("", *NAMED) and (file := expanded(name)).is_file() else {}


def prompts_of(params: Any, per_kind: int, models: Models | None = None) -> list[Prompt]:
    """The prompts of these kinds, in these models' ids; ValueError for a kind that the file does not have."""
    found = load_prompts(params.prompts or None, per_kind, models)
    among(params, kind=dict.fromkeys(prompt.kind for prompt in found))
    return [prompt for prompt in found if prompt.kind in (params.kind or (prompt.kind,))]


@lru_cache(maxsize=2)
def target_of(target: str, dtype: str, weights: str) -> Models:
    """A target without a draft, loaded once per process and dtype."""
    return load(target, None, dtype=dtype, weights=weights)


@lru_cache(maxsize=8)
def pair_of(target: str, name: str, folder: Path, dtype: str, weights: str) -> Models:
    """A draft with a target whose weights all pairs share; on CPU in the bits after its name's colon, or else int8.

    With dtype "auto" a draft without a colon keeps its file's bits. Raises ValueError for another vocabulary or a larger draft.
    """
    alone = target_of(target, dtype, weights)
    check_tokenizers(alone.folders["target"], folder)
    device = alone.target.device
    form = rounding(name)[1] or ("" if dtype == "auto" else "int8")
    draft = opened(folder, dtype, str(device), form=form if device.type == "cpu" else "")
    places = {**alone.folders, "draft": folder}
    return Models(alone.target, draft, alone.tokenizer, places, exits=alone.exits, cut=alone.cut)


def facts_of(name: str, models: Models) -> dict[str, Any]:
    """The columns that describe a row's draft; `steps` of its training are None where they are not recorded."""
    model, folder = models.model("draft"), Path(models.folders["draft"])
    weight, config, design = model.vocabulary, model.config, folder / "design.json"
    stored = weight.nbytes if isinstance(weight, Packed) else 2 * config.head_parameters
    sizes = {"layers": config.layers, "body": config.body_parameters, "head_bytes": stored}
    steps = int(json.loads(design.read_text(encoding="utf-8"))["design"]["steps"]) if design.exists() else None
    return {"draft": name, "draft_digest": target_digest(folder), **sizes, "steps": steps}


def short_name(target: str) -> str:
    """What a table calls a target: a shipped name, or its folder's."""
    return target if target in REFERENCE["target"] or target in PAIRS else Path(target).name

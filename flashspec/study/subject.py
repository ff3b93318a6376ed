"""What a sweep varies: an experiment, or a notebook, which is one whose rows are its parameters and what it glued."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flashspec.decoding.models import folder_of
from flashspec.study import tables
from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import cells, execute, parameters
from flashspec.study.parameters import canonical
from flashspec.study.registry import EXPERIMENTS

EXECUTED = "executed"
GLUED = "application/papermill.record/text/plain"


@dataclass(frozen=True)
class Row:
    """A parameter of a notebook, or what one of its cells glued, by name; values as Python writes them."""

    name: str
    value: str


def subject_of(name: str, folder: Path) -> Experiment:
    """An experiment by its name or that of a preset, or the one that a notebook is, by its path.

    A notebook's executed copy stays in `folder`/executed, and copies of the tables that it measured in `folder`/tables.
    """
    if not name.endswith(".ipynb"):
        return EXPERIMENTS.preset(name)
    path = Path(name).resolve()
    known = [(each, kind, field(default_factory=lambda d=d: d)) for each, (kind, d) in parameters(path).items()]
    params = make_dataclass("Params", known, frozen=True)
    return Experiment(path.stem, params, Row, partial(_ran, path, folder), measured=False, models=_models)


def _models(params: Any) -> dict[str, Path]:
    """The models here that parameters named target, draft or ..._target name."""
    found = dict[str, Path]()
    for name, value in vars(params).items():
        role = name.rpartition("_")[2]
        named = "+".join(map(str, value if isinstance(value, list) else [value])).split("+")
        for each in named if role in ("target", "draft") else ():
            with suppress(OSError, ValueError):
                found[each] = folder_of(each, role)
    return found


def _ran(path: Path, folder: Path, params: Any) -> Iterator[Row]:
    """Run a notebook in this process's folder."""
    given, before = canonical(params), _stored()
    try:
        out = execute(path, folder / EXECUTED / path.name, given, None, Path.cwd())
    finally:
        for table, _ in _stored() - before:
            place = folder / "tables" / table.parent.name / table.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table, place)
    found = {name: repr(value) for name, value in given.items()}
    for shown in (shown for cell in cells(out) for shown in cell.get("outputs", ()) if GLUED in shown.get("data", ())):
        found[shown["metadata"]["scrapbook"]["name"]] = "".join(shown["data"][GLUED])
    yield from (Row(name, value) for name, value in found.items())


def _stored() -> set[tuple[Path, int]]:
    """Stored tables, and when each was written."""
    return {(path, path.stat().st_mtime_ns) for path in tables.default_root().glob("*/*.parquet")}

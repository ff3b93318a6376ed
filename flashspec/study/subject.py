"""What a sweep varies, an experiment or a notebook: parameters, digests of models, running a point, reading it."""

from __future__ import annotations

import ast
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flashspec import provenance
from flashspec.decoding.models import folder_of
from flashspec.models.writing import write_text
from flashspec.study import tables
from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import cells, execute, parameters, validated
from flashspec.study.parameters import Refused, canonical
from flashspec.study.registry import EXPERIMENTS

RESULT = "result"
GLUED = "application/papermill.record/text/plain"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """An experiment or a preset, the result of a point being its table; `timed` where its rows are of a clock."""

    name: str
    suffix = ".parquet"
    text = ""

    @cached_property
    def experiment(self) -> Experiment:
        return EXPERIMENTS.preset(self.name)

    @property
    def timed(self) -> bool:
        return self.experiment.measured

    @property
    def home(self) -> Path:
        """The folder that names of models are relative to."""
        return Path.cwd()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a point's key holds besides its parameters and models."""
        return {"experiment": self.experiment.name, "version": self.experiment.version}

    def settled(self, values: Values) -> dict[str, Any]:
        """All parameters as JSON values in declared types; unknown names and wrong types are refused."""
        return canonical(self.experiment.preset(self.name if self.name in self.experiment.presets else "", **values))

    def models(self, params: Values) -> dict[str, Any]:
        """Digests of the files of the models that parameters name."""
        return self.experiment.digests(self.experiment.parse(params))

    def run(self, params: Values, folder: Path) -> None:
        """Write one point's result to the file RESULT of a folder that keeps what is unfinished."""
        self.experiment.run(params, root=folder).path.replace(folder / RESULT)

    def read(self, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and origin of a result; Refused where it is damaged."""
        table, origin = tables.opened(path)
        return table.to_pylist(), origin


@dataclass(frozen=True)
class Notebook:
    """A notebook: the result of a point is the executed one, its row what it glued; see `Measurement`."""

    path: Path
    suffix = ".ipynb"
    timed = False  # for all that anybody knows

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def home(self) -> Path:
        return self.path.parent

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def facts(self) -> dict[str, Any]:
        versions = {name: found.version for name, found in EXPERIMENTS.items()}
        return {"notebook": [(cell["cell_type"], cell["source"]) for cell in cells(self.path)], "versions": versions}

    def settled(self, values: Values) -> dict[str, Any]:
        known = parameters(self.path)
        return {**{name: each.default for name, each in known.items()}, **validated(known, values)}

    def models(self, params: Values) -> dict[str, Any]:
        """Digests of what parameters named target, draft or ..._target name; None for what is not here."""
        found = dict[str, Any]()
        for name, value in params.items():
            role = name.rpartition("_")[2]
            named = "+".join(map(str, value if isinstance(value, list) else [value])).split("+")
            for each in named if role in ("target", "draft") else ():
                found[each] = None
                with suppress(OSError, ValueError):
                    found[each] = provenance.model_digests(folder_of(each, role))
        return found

    def run(self, params: Values, folder: Path) -> None:
        started, before = time.monotonic(), _stored()
        try:
            out = execute(self.path, folder / "executed" / self.path.name, params, None, Path.cwd())
        finally:
            for path, _ in _stored() - before:
                place = folder / "tables" / path.parent.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
        made = json.loads(out.read_bytes())
        took = {"duration_s": round(time.monotonic() - started, 2), "params": dict(params)}
        made["metadata"]["flashspec"] = {**provenance.origin(), **took, "models": self.models(params)}
        write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", folder / RESULT)

    def read(self, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        try:
            origin = json.loads(path.read_bytes())["metadata"]["flashspec"]
            return [{**origin["params"], **_glued(path)}], origin
        except (LookupError, TypeError, ValueError) as error:
            raise Refused(f"notebook {path.name} in {path.parent.name} is damaged ({error!r}): run its point again") from error


def subject_of(name: str) -> Measurement | Notebook:
    """The notebook whose path this is, or the experiment or preset of this name."""
    return Notebook(Path(name).resolve()) if name.endswith(".ipynb") else Measurement(name)


def _stored() -> set[tuple[Path, int]]:
    """Stored tables, and when each was written."""
    return {(path, path.stat().st_mtime_ns) for path in tables.default_root().glob("*/*.parquet")}


def _glued(path: Path) -> dict[str, Any]:
    """What the cells of an executed notebook glued, by name."""
    outputs = [out for cell in cells(path) for out in cell.get("outputs", ()) if "scrapbook" in out.get("metadata", {})]
    found = {out["metadata"]["scrapbook"]["name"]: "".join(out["data"][GLUED]) for out in outputs if GLUED in out["data"]}
    for name, text in found.items():
        with suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(text)
    return found

"""All experiments by name, the short ways to run one, and notebooks as experiments."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flashspec.decoding.models import folder_of
from flashspec.parameters import Refused, canonical, hints, parse
from flashspec.study import decodes, exits, family, parts, race, real_shapes, recall, tables
from flashspec.study.drafts import prompts_file
from flashspec.study.experiment import Experiment
from flashspec.study.frames import framed
from flashspec.study.notebooks import cells, checked, execute, parameters
from flashspec.study.tables import Results


class Experiments(dict[str, Experiment]):
    """The experiments of the study by name, and those of your own by `module:NAME`."""

    def __missing__(self, name: str) -> Experiment:
        module, _, attribute = name.partition(":")
        if not (module and attribute):
            known, presets = ", ".join(self), ", ".join(self.presets())
            raise Refused(f"unknown experiment {name!r}; known experiments: {known}; presets: {presets}")
        if not isinstance(found := getattr(importlib.import_module(module), attribute, None), Experiment):
            raise Refused(f"{name!r} names no Experiment; name one as module:NAME")
        return found

    def presets(self) -> dict[str, Experiment]:
        """Every preset by name, and the experiment that it is of; a later one's presets hide an earlier one's."""
        return {preset: found for found in self.values() for preset in found.presets}

    def preset(self, name: str) -> Experiment:
        """The experiment of this name, or else the one that has a preset of this name."""
        return self[name] if name in self else self.presets().get(name) or self[name]


NEAR = 1e-4  # relative, of numbers computed again on another machine or with another number of threads
EXECUTED = "executed"
GLUED = "application/papermill.record/text/plain"
ALL = (decodes, exits, family, parts, real_shapes, recall, race)
EXPERIMENTS = Experiments({each.EXPERIMENT.name: each.EXPERIMENT for each in ALL})


def run(experiment: Experiment | str, params: Any = None, **options: Any) -> Results:
    """`Experiment.run` of an experiment or of the one with this name."""
    return _named(experiment).run(params, **options)


def stored(experiment: Experiment | str, root: Path | None = None, params: Any = None) -> Results | None:
    """The stored table of parameters as `run` takes them; None if there is no such table."""
    return _named(experiment).stored(params, root)


def everywhere(experiment: Experiment | str, root: Path | None = None, params: Any = None) -> list[Results]:
    """The stored tables of parameters from every machine that measured them."""
    return _named(experiment).everywhere(params, root)


def params(scope: MutableMapping[str, Any], experiment: Experiment | str = "race") -> Any:
    """Parameters of an experiment from the names in a scope, such as a notebook's `globals()`.

    Single values, lists and strings become what fields are. Functions are skipped: a notebook's kernel defines `exit`.
    What papermill injected is `checked` first.
    """
    checked(scope)
    kind = _named(experiment).params
    return parse(kind, {name: scope[name] for name in hints(kind) if name in scope and not callable(scope[name])})


def _named(experiment: Experiment | str) -> Experiment:
    return EXPERIMENTS[experiment] if isinstance(experiment, str) else experiment


def again(path: Path) -> str | None:
    """Compute a table again where all of it, or all but the columns of a clock, is a function of source and models.

    Nothing said where it agrees, else why it cannot be computed here, None for an observation; Refused where it differs.
    """
    table, facts = tables.consistent(path)
    try:
        experiment = EXPERIMENTS[facts["experiment"]]
        if "converted_from" in facts or (facts["measured"] and not experiment.timed):
            return None
        params = experiment.parse(facts["params"])
        here, there = experiment.digests(params), facts["models"]
    except (LookupError, OSError, ValueError) as error:
        return f"its experiment, parameters or models are not here ({error})"
    same = all(there.get(name, found) == found for name, found in here.items())
    if not same or (experiment.version, canonical(params)) != (facts["version"], facts["params"]):
        return f"{experiment.name} has another version, other parameters or other models now"
    rows = [tables.cells(row, experiment.row) for point in experiment.split(params) for row in experiment.function(point)]
    kept = [name for name in table.column_names if name not in experiment.timed]
    if found := list(tables.unlike_rows(table.to_pandas()[kept], framed(rows)[kept], NEAR)):
        raise Refused(
            f"table {path.name} in {path.parent.name} (A) is not what the source computes here (B): {'; '.join(found)}; "
            "find what changed, or measure it afresh (--fresh)"
        )
    return ""


@dataclass(frozen=True)
class Named:
    """A parameter of a notebook, or what one of its cells glued, by name; values as Python writes them."""

    name: str
    value: str


def experiment_of(name: str, folder: Path) -> Experiment:
    """An experiment by its name or that of a preset, or the one that a notebook is, by its path.

    A notebook's executed copy stays in `folder`/executed, and copies of the tables that it measured in `folder`/tables.
    """
    if not name.endswith(".ipynb"):
        return EXPERIMENTS.preset(name)
    path = Path(name).resolve()
    return Experiment(path.stem, parameters(path), Named, partial(_ran, path, folder), measured=False, models=_models)


def _models(params: Any) -> dict[str, Path]:
    """The models here that parameters named target, draft or ..._target name, and the prompts files."""
    found = dict[str, Path]()
    for name, value in vars(params).items():
        role = name.rpartition("_")[2]
        named = "+".join(map(str, value if isinstance(value, list) else [value])).split("+")
        found |= prompts_file(str(value)) if role == "prompts" else {}
        for each in named if role in ("target", "draft") else ():
            with suppress(OSError, ValueError):
                found[f"{role} {each}" if each in found else each] = folder_of(each, role)
    return found


def _ran(path: Path, folder: Path, params: Any) -> Iterator[Named]:
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
    yield from (Named(name, value) for name, value in found.items())


def _stored() -> set[tuple[Path, int]]:
    """Stored tables, and when each was written."""
    return {(path, path.stat().st_mtime_ns) for path in tables.default_root().glob("*/*.parquet")}

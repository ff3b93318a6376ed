"""An experiment is a type of parameters, a type of rows and a function; running it gives a table with its origin."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from flashspec import provenance
from flashspec.kernels import build
from flashspec.models.writing import refuse_input
from flashspec.parameters import Refused, canonical, parse
from flashspec.study import tables
from flashspec.study.tables import Results


def by(*names: str) -> Callable[[Any], list[Any]]:
    """One point for every combination of members of these list fields, so that a killed run can continue."""

    def points(params: Any) -> list[Any]:
        members = product(*(getattr(params, name) for name in names))
        return [replace(params, **{name: (value,) for name, value in zip(names, each, strict=True)}) for each in members]

    return points


@dataclass(frozen=True)
class Experiment:
    """One question with typed parameters and typed rows, both dataclasses.

    `function` measures the rows of one point. `split` cuts parameters into points, themselves parameters: each finished
    point is kept, so a killed run continues. `models` names the checkpoint folders read, whose digests enter the
    origin. `measured` marks wall-clock tables; the others are functions of the source, and so are all columns but `timed`
    where a measured table names those of its clock. `presets` names parameters worth a name; "smoke" is the smallest run that
    exercises everything. `version` counts the meanings that the same parameters have had: it is part of a table's key.
    """

    name: str
    params: type
    row: type
    function: Callable[[Any], Iterable[Any]]
    measured: bool = True
    split: Callable[[Any], Iterable[Any]] = by()
    models: Callable[[Any], Mapping[str, Path]] = lambda params: {}
    presets: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    timed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def place(self, params: Any, root: Path | None = None) -> Path:
        """The file of the table of these parameters."""
        facts = {"experiment": self.name, "version": self.version, "params": canonical(params)}
        return (root or tables.default_root()) / self.name / f"{provenance.short_hash(facts)}.parquet"

    def parse(self, params: Any = None) -> Any:
        """Parameters from their type, a mapping to values or strings, a preset's name, or None for the defaults.

        Unknown names and wrong types are refused.
        """
        if isinstance(params, str):
            return self.preset(params)
        return parse(self.params, vars(params) if isinstance(params, self.params) else params or {})

    def preset(self, name: str, /, **changes: Any) -> Any:
        """The parameters of a preset ("": the defaults), some of them changed; an unknown one is refused."""
        if name and name not in self.presets:
            raise Refused(f"experiment {self.name} has no preset {name!r}; it has: {', '.join(self.presets) or 'none'}")
        return self.parse({**vars(self.presets[name] if name else self.params()), **changes})

    def stored(self, params: Any = None, root: Path | None = None) -> Results | None:
        """The stored table of these parameters; None if there is none, Refused if it is damaged."""
        return tables.read(self.place(self.parse(params), root), self.row)

    def everywhere(self, params: Any = None, root: Path | None = None) -> list[Results]:
        """The stored table of these parameters, and those that other machines measured beside it."""
        path = self.place(self.parse(params), root)
        paths = [path, *sorted(path.parent.glob(f"{path.stem}-*.parquet"))]
        return [found for each in paths if (found := tables.read(each, self.row))]

    def run(self, params: Any = None, fresh: bool = False, root: Path | None = None, progress: bool = False) -> Results:
        """The stored table of these parameters, or measure and store it.

        `fresh` measures here: a measured table is written beside the one another machine stored, keyed by this machine; any
        other is replaced. Damaged tables and unknown parameters are refused.
        """
        params = self.parse(params)
        path = self._free(self.place(params, root)) if fresh else self.place(params, root)
        found = None if fresh else tables.read(path, self.row)
        if found is None:
            refuse_input(path.parent, self.models(params).values())
            found = self._measured(params, path, fresh, progress)
        self._warn_of_other_models(params, found.origin)
        return found

    def _free(self, path: Path) -> Path:
        """The path itself unless it holds a readable measurement of another machine, else one beside it."""
        here = provenance.short_hash(provenance.machine())
        try:
            found = tables.read(path, self.row) if self.measured else None
        except Refused:
            return path
        elsewhere = found is not None and found.origin.get("machine_key") != here
        return path.with_stem(f"{path.stem}-{here}") if elsewhere else path

    def _measured(self, params: Any, path: Path, fresh: bool, progress: bool) -> Results:
        """Measure and store, unless another process did so during the wait.

        Finished points are kept beside the table until all are; those of other code, versions, models, machine or columns
        in a folder of their own.
        """
        from tqdm import tqdm

        made = [provenance.source(), provenance.versions(), provenance.machine(), self.digests(params)]
        here = provenance.short_hash([*made, list(tables.columns(self.row))])
        unfinished = path.with_suffix(f".{here}.part")
        with tables.held(path):
            if not fresh and (found := tables.read(path, self.row)):
                return found
            started, rows, resumed = time.monotonic(), list[Any](), len(list(unfinished.glob("[!.]*")))
            for point in tqdm(list(self.split(params)), desc=self.name, unit="point", disable=not progress, delay=0.5):
                rows += self._point(point, unfinished / provenance.short_hash(canonical(point))).rows
            if not rows:
                raise Refused(f"these parameters of {self.name} leave nothing to measure; a list is empty")
            if path.exists():
                warnings.warn(f"{path.name}, which was there, is replaced by what was measured now", stacklevel=3)
            origin = {
                **provenance.origin(),
                "kernels": build.identity(),
                "experiment": self.name,
                "version": self.version,
                "key": self.place(params).stem,
                "params": canonical(params),
                "measured": self.measured,
                "models": self.digests(params),
                "duration_s": round(time.monotonic() - started, 2),
                "resumed_points": resumed,
            }
            found = tables.write(path, self.row, rows, origin)
            shutil.rmtree(unfinished)
            return found

    def _point(self, point: Any, place: Path) -> Results:
        """The rows of a finished point, else measured now and kept; a damaged one is measured again."""
        with suppress(Refused):
            if found := tables.read(place, self.row):
                return found
        return tables.write(place, self.row, list(self.function(point)), {})

    def digests(self, params: Any) -> dict[str, Any]:
        """Digests of the files of the models that these parameters name."""
        return {name: provenance.model_digests(folder) for name, folder in self.models(params).items()}

    def _warn_of_other_models(self, params: Any, origin: Mapping[str, Any]) -> None:
        """Warn if a local model is not the one that a stored table is about."""
        try:
            here = self.digests(params)
        except (OSError, ValueError):
            return
        other = [name for name, digests in here.items() if origin["models"].get(name, digests) != digests]
        if other:
            words = f"the stored table is about another model named {', '.join(other)} than the one here"
            warnings.warn(f"{words}; measure it afresh (--fresh)", stacklevel=3)

"""An experiment is a type of parameters, a type of rows and a function; running it gives a table that records its origin."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Generic, TypeVar

from flashspec import provenance
from flashspec.kernels import build
from flashspec.models.writing import refuse_input
from flashspec.study import tables
from flashspec.study.parameters import Refused, canonical, key, parse
from flashspec.study.tables import Results

Params = TypeVar("Params")
Row = TypeVar("Row")


def by(*names: str) -> Callable[[Any], list[Any]]:
    """One point for every combination of members of these list fields, so that a killed sweep can continue."""

    def points(params: Any) -> list[Any]:
        members = product(*(getattr(params, name) for name in names))
        return [replace(params, **{name: (value,) for name, value in zip(names, each, strict=True)}) for each in members]

    return points


@dataclass(frozen=True)
class Experiment(Generic[Params, Row]):
    """One question with typed parameters and typed rows, both dataclasses.

    `function` measures the rows of one point. `split` cuts parameters into points, themselves parameters: each finished
    point is journaled, so a killed sweep continues. `models` names the checkpoint folders read, whose digests enter the
    origin. `measured` marks wall-clock tables; the others are functions of the source, and so are all columns but `timed`
    where a measured table names those of its clock. `presets` names parameters worth a name; "smoke" is the smallest run that
    exercises everything. `version` counts the meanings that the same parameters have had: it is part of a table's key.
    """

    name: str
    params: type[Params]
    row: type[Row]
    function: Callable[[Params], Iterable[Row]]
    measured: bool = True
    split: Callable[[Params], Iterable[Params]] = by()
    models: Callable[[Params], Mapping[str, Path]] = lambda params: {}
    presets: Mapping[str, Params] = field(default_factory=dict)
    version: int = 1
    timed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def place(self, params: Params, root: Path | None = None) -> Path:
        """The file of the table of these parameters."""
        facts = {"experiment": self.name, "version": self.version, "params": canonical(params)}
        return (root or tables.default_root()) / self.name / f"{provenance.short_hash(facts)}.parquet"

    def parse(self, values: Mapping[str, Any]) -> Params:
        """Parameters from values or strings by name; unknown names and wrong types are refused."""
        return parse(self.params, values)

    def preset(self, name: str, **changes: Any) -> Params:
        """The parameters of a preset, some of them changed; an unknown preset is refused with the list."""
        if name not in self.presets:
            raise Refused(f"experiment {self.name} has no preset {name!r}; it has: {', '.join(self.presets) or 'none'}")
        return self.parse({**vars(self.presets[name]), **changes})

    def meant(self, params: Any) -> Params:
        """Parameters from their type, a mapping to values or strings, a preset's name, or None for the defaults."""
        if isinstance(params, str):
            return self.preset(params)
        return self.parse(vars(params) if isinstance(params, self.params) else params or {})

    def stored(self, params: Any = None, root: Path | None = None) -> Results | None:
        """The stored table of these parameters; None if there is none, Refused if it is damaged."""
        return tables.read(self.place(self.meant(params), root), self.row)

    def run(self, params: Any = None, fresh: bool = False, root: Path | None = None, progress: bool = False) -> Results:
        """The stored table of these parameters, or measure and store it.

        `fresh` measures here: a measured table is written beside the one another machine stored, keyed by this machine; any
        other is replaced. Damaged tables and unknown parameters are refused.
        """
        params = self.meant(params)
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

    def _measured(self, params: Params, path: Path, fresh: bool, progress: bool) -> Results:
        """Measure and store, unless another process did so during the wait."""
        from tqdm import tqdm

        facts = {"code": provenance.source(), "machine": provenance.short_hash(provenance.machine())}
        header = {**facts, "params": canonical(params), "columns": list(tables.columns(self.row))}
        with tables.journal(path.with_suffix(".part.jsonl"), header) as held:
            if not fresh and (found := tables.read(path, self.row)):
                return found
            started, resumed, rows = time.monotonic(), len(held.done), list[Row]()
            points = list(self.split(params))
            for point in tqdm(points, desc=self.name, unit="point", disable=not progress, delay=0.5):
                if (name := key(point)) not in held.done:
                    held.add(name, [tables.cells(row, self.row) for row in self.function(point)])
                rows += [self.row(**cells) for cells in held.done[name]]
            if not rows:
                raise Refused(f"these parameters of {self.name} leave nothing to measure; a list among them is empty")
            if path.exists():
                warnings.warn(f"{path.name}, which was there, is replaced by what was measured now", stacklevel=3)
            took = {"duration_s": round(time.monotonic() - started, 2), "resumed_points": resumed}
            return tables.write(path, self.row, rows, {**self._origin(params), **took})

    def _origin(self, params: Params) -> dict[str, Any]:
        return {
            **provenance.origin(),
            "kernels": build.identity(),
            "experiment": self.name,
            "version": self.version,
            "key": self.place(params).stem,
            "params": canonical(params),
            "measured": self.measured,
            "models": self.digests(params),
        }

    def digests(self, params: Params) -> dict[str, Any]:
        """Digests of the files of the models that these parameters name."""
        return {name: provenance.model_digests(folder) for name, folder in self.models(params).items()}

    def _warn_of_other_models(self, params: Params, origin: Mapping[str, Any]) -> None:
        """Warn if a local model is not the one that a stored table is about."""
        try:
            here = self.digests(params)
        except (OSError, ValueError):
            return
        other = [name for name, digests in here.items() if origin["models"].get(name, digests) != digests]
        if other:
            words = f"the stored table is about another model named {', '.join(other)} than the one here"
            warnings.warn(f"{words}; measure it afresh (--fresh)", stacklevel=3)

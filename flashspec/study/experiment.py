"""An experiment is a type of parameters, a type of rows and a function; running it gives a table with its origin."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flashspec import provenance
from flashspec.kernels import build
from flashspec.models.writing import refuse_input
from flashspec.study import store, tables
from flashspec.study.columns import Columns
from flashspec.study.journal import Journal, journal
from flashspec.study.parameters import Refused, canonical, key, parse
from flashspec.study.store import Place, Table

if TYPE_CHECKING:
    from pandas import DataFrame

Params = TypeVar("Params")
Row = TypeVar("Row")


def whole(params: Any) -> list[Any]:
    """The sweep of one point."""
    return [params]


def no_models(params: Any) -> dict[str, Path]:
    """The models of an experiment that reads none."""
    return {}


@dataclass(frozen=True)
class Experiment(Generic[Params, Row]):
    """One question with typed parameters and typed rows.

    `function` measures the rows of one point. `split` cuts parameters into points, themselves parameters: each finished
    point is journaled, so a killed sweep continues. `models` names the checkpoint folders read, whose digests enter the
    origin. `measured` marks wall-clock tables; the others are functions of the source. `presets` names parameters worth a
    name; "smoke" is the smallest run that exercises everything. `version` counts the meanings that the same parameters have had:
    it is part of a Parquet table's key, and 0 keeps the table as CSV.
    """

    name: str
    params: type[Params]
    row: type[Row]
    function: Callable[[Params], Iterable[Row]]
    measured: bool = True
    split: Callable[[Params], Iterable[Params]] = whole
    models: Callable[[Params], Mapping[str, Path]] = no_models
    presets: Mapping[str, Params] = field(default_factory=dict)
    version: int = 0

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def columns(self) -> Columns:
        return Columns(self.row)

    @property
    def shelf(self) -> Any:
        """The module that reads and writes its tables."""
        return tables if self.version else store

    def place(self, params: Params, root: Path | None = None) -> Place:
        """Where the table of these parameters lies."""
        facts = {"experiment": self.name, "version": self.version, "params": canonical(params)}
        name = provenance.short_hash(facts) if self.version else key(params)
        return Place(Path(root or store.default_root()) / self.name, name)

    def parse(self, values: Mapping[str, Any]) -> Params:
        """Parameters from values or strings by name; unknown names and wrong types are refused."""
        return parse(self.params, values)

    def preset(self, name: str, **changes: Any) -> Params:
        """The parameters of a preset, some of them changed; an experiment without it refuses with the list."""
        if name not in self.presets:
            raise Refused(f"experiment {self.name} has no preset {name!r}; it has: {', '.join(self.presets) or 'none'}")
        return self.parse({**vars(self.presets[name]), **changes}) if changes else self.presets[name]

    def run(self, params: Params | None = None, **options: Any) -> Results:
        """`run(self, params, ...)`."""
        return run(self, params, **options)


@dataclass(frozen=True)
class Results:
    """Rows of one experiment and where they come from."""

    rows: tuple[Any, ...]
    origin: dict[str, Any]
    path: Path
    columns: Columns = field(repr=False)

    @cached_property
    def frame(self) -> DataFrame:
        """The rows as a pandas frame, one typed column a field."""
        import pandas

        names = self.columns.names
        frame = pandas.DataFrame([[getattr(row, name) for name in names] for row in self.rows], columns=list(names))
        numbers = {name: float for name, (kind, optional) in self.columns.kinds.items() if optional and kind in (int, float)}
        return frame.astype(numbers)

    @property
    def machine(self) -> str:
        """Processor, cores, instruction set, device and day, for a caption."""
        return provenance.describe(self.origin)


def run(
    experiment: Experiment | str, params: Any = None, fresh: bool = False, root: Path | None = None, progress: bool = False
) -> Results:
    """The stored table of these parameters, or measure and store it.

    `params` is the experiment's parameter type, a mapping of names to values or strings, a preset, or None for the defaults.
    `fresh` measures here: the table of a measured experiment is written beside the one another machine stored, keyed by
    this machine; any other is replaced. Damaged tables and unknown parameters are refused.
    """
    chosen = _chosen(experiment)
    params = _parsed(chosen, params)
    place = chosen.place(params, root)
    stored = None if fresh else chosen.shelf.read(place, chosen.columns)
    place = _place_of_fresh(chosen, place) if fresh else place
    if stored is None:
        refuse_input(place.folder, chosen.models(params).values())
        with store.rooted(place.folder.parent):
            stored = _measure_once(chosen, params, place, fresh, progress)
    _warn_of_other_models(chosen, params, stored.origin)
    return Results(stored.rows, stored.origin, _path(chosen, place), chosen.columns)


def stored(name: str, root: Path | None = None, params: Any = None) -> Results | None:
    """The stored table of parameters as `run` takes them; None if there is no such table."""
    experiment = _chosen(name)
    place = experiment.place(_parsed(experiment, params), root)
    table = experiment.shelf.read(place, experiment.columns)
    return table and Results(table.rows, table.origin, _path(experiment, place), experiment.columns)


def params(scope: Mapping[str, Any], experiment: Experiment | str = "race") -> Any:
    """An experiment's parameters as the names of a scope give them, such as `globals()` behind a notebook's parameters cell.

    Functions are passed over: a notebook's kernel has one named `exit`.
    """
    chosen = _chosen(experiment)
    known = chosen.params.__dataclass_fields__
    return chosen.parse({name: scope[name] for name in known if name in scope and not callable(scope[name])})


def _parsed(experiment: Experiment, params: Any) -> Any:
    if isinstance(params, str):
        return experiment.preset(params)
    return experiment.parse(vars(params) if isinstance(params, experiment.params) else params or {})


def _path(experiment: Experiment, place: Place) -> Path:
    return tables.path_of(place) if experiment.version else place.csv


def _warn_of_other_models(experiment: Experiment, params: Any, origin: Mapping[str, Any]) -> None:
    """Say so where a model that is here is not the one that a stored table is about."""
    if not experiment.version:
        return
    try:
        here = {name: provenance.model_digests(folder) for name, folder in experiment.models(params).items()}
    except (OSError, ValueError):
        return
    other = [name for name, digests in here.items() if origin["models"].get(name, digests) != digests]
    if other:
        words = f"the stored table is about another model named {', '.join(other)} than the one here"
        warnings.warn(f"{words}; measure it afresh (--fresh)", stacklevel=3)


def _chosen(experiment: Experiment | str) -> Experiment:
    if isinstance(experiment, Experiment):
        return experiment
    from flashspec.study.registry import EXPERIMENTS

    return EXPERIMENTS[experiment]


def _place_of_fresh(experiment: Experiment, place: Place) -> Place:
    """The place itself if it is free, unreadable, machine-independent or this machine's own, else one beside it."""
    here = provenance.short_hash(provenance.machine())
    try:
        stored = experiment.shelf.read(place, experiment.columns)
    except Refused:
        return place
    elsewhere = stored is not None and stored.origin.get("machine_key") != here
    return place.beside(here) if experiment.measured and elsewhere else place


def _measure_once(experiment: Experiment, params: Any, place: Place, fresh: bool, progress: bool) -> Table:
    """Measure and store, unless another process did so while this one waited."""
    code = provenance.source()
    header = {"params": canonical(params), "code": code, "machine": provenance.short_hash(provenance.machine())}
    with journal(place.journal, header) as held:
        found = None if fresh else experiment.shelf.read(place, experiment.columns)
        return found or _measure(experiment, params, place, held, progress)


def _measure(experiment: Experiment, params: Any, place: Place, journal: Journal, progress: bool) -> Table:
    started = time.monotonic()
    resumed = len(journal.done)
    points = list(experiment.split(params))
    rows = [row for point in _bar(points, experiment.name, progress) for row in _point(experiment, point, journal)]
    if not rows:
        raise Refused(f"these parameters of {experiment.name} leave nothing to measure; a list among them is empty")
    origin = _origin(experiment, params, {"duration_s": round(time.monotonic() - started, 2), "resumed_points": resumed})
    experiment.shelf.write(place, experiment.columns, rows, origin)
    return experiment.shelf.read(place, experiment.columns)


def _point(experiment: Experiment, point: Any, journal: Journal) -> list[Any]:
    columns, name = experiment.columns, key(point)
    if name not in journal.done:
        journal.add(name, [columns.cells(row) for row in experiment.function(point)])
    return list(columns.parse(journal.done[name]))


def _origin(experiment: Experiment, params: Any, run_facts: dict[str, Any]) -> dict[str, Any]:
    return {
        **provenance.origin(),
        **run_facts,
        "kernels": build.identity(),
        "experiment": experiment.name,
        "version": experiment.version,
        "key": experiment.place(params).name,
        "params": canonical(params),
        "measured": experiment.measured,
        "models": {name: provenance.model_digests(folder) for name, folder in experiment.models(params).items()},
    }


def _bar(points: list[Any], name: str, progress: bool) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(points, desc=name, unit="point", disable=not progress, delay=0.5)

"""Sweeps: the points of a grid, each made once, kept under a key of its content, and put into one table."""

from __future__ import annotations

import ast
import io
import random
import shutil
import tarfile
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.models.writing import made, replaced, write_text
from flashspec.parameters import MANY, UNFIT, Refused, canonical, listed, parse
from flashspec.study import tables
from flashspec.study.engines import RESULT, WORKER, Answer, Engine, Task, answered
from flashspec.study.experiment import Experiment
from flashspec.study.frames import DataFrame
from flashspec.study.notebooks import cells
from flashspec.study.registry import EXECUTED, EXPERIMENTS, experiment_of
from flashspec.typed import at_least

TABLE = "table.csv"
LARGEST_FILE = 2**16
LARGEST_GRID = 100 * MANY  # points, of which a sample is drawn
Result = tuple[list[dict[str, Any]], dict[str, Any]]  # rows and origin


@dataclass(frozen=True)
class Grid:
    """Values by parameter: every combination of `product`, with the pairs of `zip`; of these a sample, or all."""

    product: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    sample: int | None = None  # only so many points, drawn from the grid
    seed: int = 0  # seed of that draw

    def __post_init__(self) -> None:
        if self.sample is not None:
            at_least(self, sample=1)
        if both := sorted(self.product.keys() & self.zip.keys()):
            raise Refused(f"parameter {both[0]!r} is in the product and in the zip; leave it in one")

    def points(self) -> list[dict[str, Any]]:
        """The values of each point by parameter, the last one running fastest; one empty point for no values."""
        axes = [[{name: value} for value in _values(name, given)] for name, given in self.product.items()]
        if self.zip:
            paired = {name: _values(name, given) for name, given in self.zip.items()}
            if len(set(map(len, paired.values()))) > 1:
                lengths = ", ".join(f"{name} has {len(values)}" for name, values in paired.items())
                raise Refused(f"zip takes lists of one length, but {lengths}")
            axes.insert(0, [dict(zip(paired, each, strict=True)) for each in zip(*paired.values(), strict=True)])
        total = prod(map(len, axes))
        wanted = min(self.sample or total, total)
        if wanted > MANY or total > LARGEST_GRID:
            raise Refused(f"a sweep takes at most {MANY} points, and this grid has {total}; give fewer values, or --sample")
        chosen = set(random.Random(self.seed).sample(range(total), wanted))
        drawn = [each for number, each in enumerate(product(*axes)) if number in chosen]
        return [{name: value for part in each for name, value in part.items()} for each in drawn]


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file; Refused where it is none."""
    import yaml

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TypeError(f"it has more than {LARGEST_FILE} bytes")
        text = path.read_bytes()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise TypeError("it holds aliases, by which a small file becomes a large one")
        found = yaml.safe_load(text)
        if not isinstance(found, dict):
            raise TypeError("it holds no names with values")
        return parse(Grid, {str(name): value for name, value in found.items()})
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{path.name} is no grid ({reason:.200}); write `product: {{k: 1..12}}`, zip, sample or seed") from error


def spoken(text: str) -> tuple[str, str]:
    """Name and values of `NAME=VALUES`, as a command line has them."""
    name, given, values = text.partition("=")
    if not (name and given):
        raise Refused(f"{text!r:.80} names no values; write NAME=VALUES, as in k=1..12 or head=dense,flash")
    return name, values


def _values(name: str, given: Any) -> list[Any]:
    try:
        found = listed(given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    except UNFIT as error:
        raise Refused(f"the values of {name!r} cannot be read ({error}): write 1..12, dense,flash or [[1, 2], 3]") from error
    if not 0 < len(found) <= MANY:
        raise Refused(f"parameter {name!r} has {len(found) or 'no'} values; give 1 to {MANY} of them")
    return found


class Point(NamedTuple):
    """One point: the grid's values, all parameters, the models' digests, and the key of all three."""

    values: dict[str, Any]
    params: dict[str, Any]
    models: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Sweep:
    """An experiment or notebook over a grid; results are in `out`/points, what failed in `out`/unfinished."""

    name: str
    grid: Grid
    out: Path
    seconds: float = 3600

    @cached_property
    def home(self) -> Path:
        """The folder that names of models are relative to: a notebook's own, or this process's."""
        return Path(self.name).resolve().parent if self.name.endswith(".ipynb") else Path.cwd()

    @cached_property
    def text(self) -> str:
        """The text of a notebook, "" for an experiment."""
        return Path(self.name).read_text(encoding="utf-8") if self.name.endswith(".ipynb") else ""

    @cached_property
    def experiment(self) -> Experiment:
        return experiment_of(self.name, self.out)

    @cached_property
    def points(self) -> list[Point]:
        """Every point once, in the order of the grid; unknown names, wrong types and missing models are refused."""
        base, found = self.experiment.presets.get(self.name, self.experiment.params()), list[Point]()
        facts = self._facts()
        with chdir(self.home):
            for values in self.grid.points():
                params = self.experiment.parse({**vars(base), **values})
                plain, models = canonical(params), self.experiment.digests(params)
                found.append(Point(values, plain, models, provenance.short_hash([facts, plain, models], 16)))
        return list({point.key: point for point in found}.values())

    def _facts(self) -> dict[str, Any]:
        """What a point's key holds besides parameters and models: a version, or a notebook's text and all versions."""
        if not self.text:
            return {"experiment": self.experiment.name, "version": self.experiment.version}
        whole = [(cell["cell_type"], cell["source"]) for cell in cells(Path(self.name))]
        return {"notebook": whole, "versions": {name: each.version for name, each in EXPERIMENTS.items()}}

    def place(self, key: str) -> Path:
        """The file of a point's result, there if and only if the point is finished."""
        return self.out / "points" / f"{key}.parquet"

    def finished(self) -> dict[str, Result]:
        """Rows and origin of every finished point by its key; a damaged file counts as none."""
        found = {}
        for point in self.points:
            with suppress(Refused, FileNotFoundError):
                table, origin = tables.opened(self.place(point.key))
                rows = table.to_pylist()
                if self.text:
                    rows = [{row["name"]: _literal(row["value"]) for row in rows}]
                found[point.key] = rows, origin
        return found

    def seconds_for(self, waiting: Sequence[Point], ready: dict[str, Result]) -> float | None:
        """What these points take by the median of stored durations: of finished points, else of the experiment's tables."""
        origins, took = [origin for _, origin in ready.values()], list[float]()
        for path in () if origins or self.text else (tables.default_root() / self.experiment.name).glob("*.parquet"):
            with suppress(Refused):
                origins.append(tables.opened(path)[1])
        for origin in origins:
            with suppress(LookupError, ValueError):
                took.append(origin["duration_s"] / self._parts(origin["params"]))
        return median(took) * sum(self._parts(point.params) for point in waiting) if took else None

    def _parts(self, params: dict[str, Any]) -> int:
        """How many points of its own an experiment makes of parameters."""
        return len(list(self.experiment.split(self.experiment.parse(params))))

    def run(self, engine: Engine, waiting: Sequence[Point], retries: int, seen: Callable[[], Any]) -> dict[str, str]:
        """Make these points; why points failed, by their keys.

        `seen` is called after each. An earlier result stays until its successor is whole.
        """
        failed = dict[str, str]()
        with tables.held(self.out / "points", wait=False), made(self.out / "points"):
            for task, answer in answered(engine, map(self._task, waiting), retries):
                if "failed" in answer:
                    failed[task["key"]] = answer["failed"]
                self._keep(task, answer)
                seen()
        return failed

    def _task(self, point: Point) -> Task:
        folder = self.out.resolve() / "unfinished" / point.key
        what = {"name": Path(self.name).name if self.text else self.name, "text": self.text}
        return {**what, "home": str(self.home), "folder": str(folder), **point._asdict(), "seconds": self.seconds}

    def _keep(self, task: Task, answer: Answer) -> None:
        """Write down what came over the network, and put a result in its place."""
        folder = Path(task["folder"])
        if "files" in answer:
            try:
                with tarfile.open(fileobj=io.BytesIO(answer["files"])) as files:
                    files.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise Refused(f"a worker sent files that are not of its point's folder: {error}") from error
        results = self.home / tables.default_root(self.home)
        for path in folder.glob("tables/*/*.parquet"):
            place = results / path.relative_to(folder / "tables")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        if "failed" not in answer:
            for path in folder.glob(f"{EXECUTED}/*.ipynb"):
                (self.out / EXECUTED).mkdir(exist_ok=True)
                path.replace(self.out / EXECUTED / f"{task['key']}.ipynb")
            with replaced(self.place(task["key"])) as part:
                (folder / RESULT).replace(part)
            shutil.rmtree(folder, ignore_errors=True)

    def table(self, ready: dict[str, Result]) -> tuple[DataFrame, Path]:
        """The rows of finished points in the order of the grid, and the CSV file with them.

        Columns before an experiment's own are the parameters that were swept and are none of its columns; the last, where a
        clock ran, is the worker that measured.
        """
        import pandas

        lines = list[dict[str, Any]]()
        for point in self.points:
            rows, origin = ready.get(point.key, ([], {}))
            who = {"worker": origin["variables"].get(WORKER)} if rows and (self.experiment.measured or self.text) else {}
            swept = {name: _plain(point.params[name]) for name in point.values}
            lines += [{**swept, **{name: _plain(value) for name, value in row.items()}, **who} for row in rows]
        found = pandas.DataFrame(lines, dtype=object)
        with made(self.out):
            write_text(found.to_csv(index=False), self.out / TABLE)
        return found, self.out / TABLE


def _plain(value: Any) -> Any:
    """A list of one as its member, a longer one by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _literal(text: str) -> Any:
    """The value that Python writes so, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

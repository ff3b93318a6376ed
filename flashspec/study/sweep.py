"""Sweeps: the points of a grid, each made once, kept under a key of its content, and put into one table."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.models.writing import made, replaced, write_text
from flashspec.study import tables
from flashspec.study.engines import WORKER, Answer, Engine, Task, answered
from flashspec.study.frames import DataFrame
from flashspec.study.grid import Grid
from flashspec.study.parameters import Refused
from flashspec.study.subject import RESULT, subject_of

TABLE = "table.csv"
Result = tuple[list[dict[str, Any]], dict[str, Any]]  # rows and origin


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
    def subject(self) -> Any:
        return subject_of(self.name)

    @cached_property
    def points(self) -> list[Point]:
        """Every point once, in the order of the grid; unknown names, wrong types and missing models are refused."""
        with chdir(self.subject.home):
            found = [self._point(values) for values in self.grid.points()]
        return list({point.key: point for point in found}.values())

    def _point(self, values: dict[str, Any]) -> Point:
        params = self.subject.settled(values)
        models = self.subject.models(params)
        return Point(values, params, models, provenance.short_hash([self.subject.facts, params, models], 16))

    def place(self, key: str) -> Path:
        """The file of a point's result, there if and only if the point is finished."""
        return self.out / "points" / f"{key}{self.subject.suffix}"

    def finished(self) -> dict[str, Result]:
        """Rows and origin of every finished point by its key; a damaged file counts as none."""
        found = {}
        for point in self.points:
            with suppress(Refused, FileNotFoundError):
                found[point.key] = self.subject.read(self.place(point.key))
        return found

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
        what = {"name": self.subject.name, "text": self.subject.text, "home": str(self.subject.home), "folder": str(folder)}
        return {**what, **point._asdict(), "seconds": self.seconds}

    def _keep(self, task: Task, answer: Answer) -> None:
        """Write down what came over the network, and put a result in its place."""
        folder = Path(task["folder"])
        if "files" in answer:
            try:
                with tarfile.open(fileobj=io.BytesIO(answer["files"])) as files:
                    files.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise Refused(f"a worker sent files that are not of its point's folder: {error}") from error
        with chdir(self.subject.home):
            results = tables.default_root()
        for path in folder.glob("tables/*/*.parquet"):
            place = results / path.relative_to(folder / "tables")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        if "failed" not in answer:
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
            who = {"worker": origin["variables"].get(WORKER)} if rows and (self.subject.timed or self.subject.text) else {}
            swept = {name: _plain(point.params[name]) for name in point.values}
            lines += [{**swept, **{name: _plain(value) for name, value in row.items()}, **who} for row in rows]
        found = pandas.DataFrame(lines, dtype=object)
        with made(self.out):
            write_text(found.to_csv(index=False), self.out / TABLE)
        return found, self.out / TABLE


def _plain(value: Any) -> Any:
    """A list of one as its member, a longer one by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

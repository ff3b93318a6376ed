"""Sweeps: the points of a grid, each made once, kept under a key of its content, and put together in one table."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.models.writing import made, replaced, write_text
from flashspec.study import tables
from flashspec.study.engines import WORKER, Answer, Engine, Task, answered
from flashspec.study.grid import Grid
from flashspec.study.parameters import Refused
from flashspec.study.subject import subject_of

TABLE = "table.csv"


class Point(NamedTuple):
    """One point: the grid's values, all parameters, the models' digests, and the key of all that makes its result."""

    values: dict[str, Any]
    params: dict[str, Any]
    models: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Sweep:
    """An experiment or notebook over a grid; results live in `out`/points, what failed or was cut short in `out`/unfinished."""

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

    @cached_property
    def results(self) -> Path:
        """The folder of the tables that notebooks measure."""
        with chdir(self.subject.home):
            return tables.default_root()

    def _point(self, values: dict[str, Any]) -> Point:
        params = self.subject.settled(values)
        models = self.subject.models(params)
        return Point(values, params, models, provenance.short_hash([self.subject.facts, params, models], 16))

    def place(self, key: str) -> Path:
        """The file of a point's result, there if and only if the point is finished."""
        return self.out / "points" / f"{key}{self.subject.suffix}"

    def finished(self) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Rows and origin of every finished point by its key; a damaged file counts as none."""
        found = {}
        for point in self.points:
            try:
                path = self.place(point.key)
                found[point.key] = _result(self.subject, path, path.stat().st_mtime_ns)
            except (Refused, FileNotFoundError):
                continue
        return found

    def seconds_a_point(self) -> float | None:
        """The median of stored durations: of finished points, else of the experiment's stored tables; None without any."""
        origins = [origin for _, origin in self.finished().values()]
        if not origins and "experiment" in self.subject.facts:
            for path in (self.results / self.subject.facts["experiment"]).glob("*.parquet"):
                with suppress(Refused):
                    origins.append(tables.opened(path)[1])
        return median(origin["duration_s"] for origin in origins) if origins else None

    def run(self, engine: Engine, waiting: Sequence[Point], retries: int, seen: Callable[[], Any]) -> dict[str, str]:
        """Make these points; why points failed, by their keys.

        `seen` is called after each. An earlier result stays until its successor is whole.
        """
        failed = dict[str, str]()
        with made(self.out / "points"), self._held():
            for task, answer in answered(engine, map(self._task, waiting), retries):
                if "failed" in answer:
                    failed[task["key"]] = answer["failed"]
                self._keep(task, answer)
                seen()
        return failed

    def _task(self, point: Point) -> Task:
        folder = self.out.resolve() / "unfinished" / point.key
        what = {"name": self.subject.name, "text": self.subject.text, "home": str(self.subject.home), "folder": str(folder)}
        return {**what, "key": point.key, "params": point.params, "models": point.models, "seconds": self.seconds}

    def _keep(self, task: Task, answer: Answer) -> None:
        """Write down what came over the network, and put a result in its place."""
        folder = Path(task["folder"])
        for name in (*answer.get("files", ()), answer.get("made", "")):
            if not (folder / name).resolve().is_relative_to(folder):
                raise Refused(f"a worker names the file {name!r:.80}, outside of its point's folder: look at that worker")
        for name, data in answer.get("files", {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as part:
                part.write_bytes(data)
        for path in folder.glob("tables/*/*.parquet"):
            place = self.results / path.relative_to(folder / "tables")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        if "failed" in answer:
            return
        (folder / answer["made"]).replace(self.place(task["key"]))
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The folder of results for one runner at a time."""
        import fcntl

        with (self.out / ".lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"another runner is at work in {self.out}; wait for it, or give another --out") from None
            yield

    def table(self) -> tuple[list[dict[str, Any]], Path]:
        """The rows of every finished point in the order of the grid, and the CSV file with them.

        Columns before an experiment's own are the parameters that were swept and are none of its columns; the last, where a
        clock ran, is the worker that measured.
        """
        lines, ready = list[dict[str, Any]](), self.finished()
        for point in self.points:
            rows, origin = ready.get(point.key, ([], {}))
            who = {"worker": origin["variables"].get(WORKER)} if rows and (self.subject.timed or self.subject.text) else {}
            swept = {name: _plain(point.params[name]) for name in point.values}
            lines += [{**swept, **{name: _plain(value) for name, value in row.items()}, **who} for row in rows]
        with io.StringIO(newline="") as text:
            names = dict.fromkeys(name for line in lines for name in line)
            sheet = csv.DictWriter(text, list(names), lineterminator="\n")
            sheet.writeheader()
            sheet.writerows(lines)
            with made(self.out):
                write_text(text.getvalue(), self.out / TABLE)
        return lines, self.out / TABLE


@cache
def _result(subject: Any, path: Path, written: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A result, read once until it is written again."""
    return subject.read(path)


def _plain(value: Any) -> Any:
    """A list of one as its member, a longer one by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

"""Sweeps: the points of a grid, each made once, kept under a key of its content, and put together in one table."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from flashspec import provenance
from flashspec.models.writing import made, replaced, write_text
from flashspec.study import tables
from flashspec.study.engines import WORKER, Answer, Engine, Task, answered
from flashspec.study.grid import Grid
from flashspec.study.parameters import Refused
from flashspec.study.subject import Result, subject_of


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
    seconds: float = 3600  # after which a point is stopped

    @cached_property
    def subject(self) -> Any:
        """What `subject_of` makes of the name."""
        return subject_of(self.name)

    @cached_property
    def points(self) -> list[Point]:
        """Every point once, in the order of the grid; unknown names, wrong types and missing models are refused."""
        found, facts = dict[str, Point](), self.subject.facts
        with chdir(self.subject.home):
            for values in self.grid.points():
                params = self.subject.settled(values)
                models = self.subject.models(params)
                key = provenance.short_hash([facts, params, models], 16)
                found[key] = Point(values, params, models, key)
        return list(found.values())

    @cached_property
    def ready(self) -> dict[str, Result]:
        """What the finished points hold, by key; a damaged file counts as none."""
        found = dict[str, Result]()
        for point in self.points:
            with suppress(Refused, FileNotFoundError):
                found[point.key] = self.subject.read(self._place(point.key))
        return found

    @cached_property
    def _tables(self) -> Path:
        """The folder of the tables that notebooks measure."""
        with chdir(self.subject.home):
            return tables.default_root()

    def _place(self, key: str) -> Path:
        return self.out / "points" / f"{key}{self.subject.suffix}"

    def seconds_a_point(self) -> float | None:
        """The median of stored durations: of finished points, else of the experiment's stored tables; None without any."""
        origins = [origin for _, origin in self.ready.values()]
        for path in () if origins else (self._tables / self.subject.facts.get("experiment", "none")).glob("*.parquet"):
            with suppress(Refused):
                origins.append(tables.opened(path)[1])
        return median(origin["duration_s"] for origin in origins) if origins else None

    def run(self, engine: Engine, waiting: Sequence[Point], retries: int, seen: Callable[[], Any]) -> dict[str, str]:
        """Make these points; why points failed, by their keys. `seen` is called after each.

        An earlier result stays until its successor is whole. Refused while another runner is at work in the folder.
        """
        from filelock import FileLock, Timeout

        failed = dict[str, str]()
        try:
            with made(self.out / "points"), FileLock(self.out / ".lock").acquire(blocking=False):
                for task, answer in answered(engine, map(self._task, waiting), retries):
                    self._keep(task, answer)
                    failed |= {task["key"]: answer["failed"]} if "failed" in answer else {}
                    seen()
        except Timeout:
            raise Refused(f"another runner is at work in {self.out}; wait for it, or give another folder with --out") from None
        return failed

    def _task(self, point: Point) -> Task:
        folder, what = self.out.resolve() / "unfinished" / point.key, self.subject
        made_of = {"name": what.name, "text": what.text, "home": str(what.home), "params": point.params, "models": point.models}
        return {**made_of, "key": point.key, "folder": str(folder), "seconds": self.seconds}

    def _keep(self, task: Task, answer: Answer) -> None:
        """Write down what came over the network, and put a result in its place."""
        folder, files = Path(task["folder"]), answer.get("files", {})
        for name in (*files, answer.get("made", "")):
            if not (folder / name).resolve().is_relative_to(folder):
                raise Refused(f"a worker names the file {name!r:.80}, outside of its point's folder: look at that worker")
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replaced(folder / name) as part:
                part.write_bytes(data)
        for path in folder.glob("tables/*/*.parquet"):
            if not (place := self._tables / path.relative_to(folder / "tables")).exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        if "made" in answer:
            (folder / answer["made"]).replace(self._place(task["key"]))
            self.ready[task["key"]] = self.subject.read(self._place(task["key"]))
            shutil.rmtree(folder, ignore_errors=True)

    def table(self) -> tuple[list[dict[str, Any]], Path]:
        """The rows of every finished point in the order of the grid, and the CSV file with them.

        Columns before an experiment's own are the parameters that were swept and are none of its columns; the last, where a
        clock may have run, is the worker that measured.
        """
        lines = list[dict[str, Any]]()
        for point in [point for point in self.points if point.key in self.ready]:
            rows, origin = self.ready[point.key]
            who = {"worker": origin["variables"].get(WORKER)} if self.subject.timed or self.subject.text else {}
            swept = {name: point.params[name] for name in point.values}
            lines += [{name: _plain(value) for name, value in {**swept, **row, **who}.items()} for row in rows]
        text = io.StringIO(newline="")
        sheet = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        sheet.writeheader()
        sheet.writerows(lines)
        with made(self.out):
            write_text(text.getvalue(), self.out / "table.csv")
        return lines, self.out / "table.csv"


def _plain(value: Any) -> Any:
    """A list of one as its member, a longer one by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

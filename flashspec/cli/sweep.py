"""`flashspec sweep`: an experiment or a notebook over a grid of parameters."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from flashspec.cli.flags import COUNT, FILE, At, option
from flashspec.study import engines
from flashspec.study.frames import framed
from flashspec.study.grid import Grid, read, spoken
from flashspec.study.parameters import Refused
from flashspec.study.sweep import Point, Sweep

ROWS_SHOWN = 40


@click.command("sweep")
@click.argument("name", metavar="NOTEBOOK_OR_EXPERIMENT")
@click.option("-p", "values", multiple=True, metavar="NAME=VALUES", help="Values by commas, or a range as 1..12.")
@click.option("--grid", type=FILE, help="A YAML file with product, zip, sample and seed.")
@click.option("--sample", type=COUNT, metavar="N", help="Only so many points, drawn from the grid.")
@click.option("--seed", type=int, help="Of that draw; default 0.")
@click.option("--out", type=At(), help="Folder of the results; default sweeps/NAME.")
@option("--engine", type=click.Choice(["local", "dask"]), default="local", help="Processes here, or the workers of a scheduler.")
@option("--workers", type=COUNT, default=1, help="Processes here; timed experiments run one at a time.")
@click.option("--scheduler", metavar="ADDRESS", help="Of Dask: tcp://127.0.0.1:8786, or tls://HOST:8786.")
@click.option("--trusted", is_flag=True, help="Allow tcp:// to another machine, in a network that is yours alone.")
@option("--timeout", type=click.IntRange(1, 10**6), default=3600, help="Seconds after which a point is stopped.")
@option("--retries", type=click.IntRange(0, 100), default=1, help="More attempts at a point that failed.")
@click.option("--only", metavar="KEY", help="One point alone, as a failure names it.")
@click.option("--force", is_flag=True, help="Make finished points again.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what there is to do, and do nothing.")
def command(name: str, values: tuple[str, ...], **options: Any) -> int:
    """Run an experiment or a notebook at every point of a grid; status 1 if a point failed.

    Finished points are kept by their content and never made again: run the same command to go on where it stopped.
    """
    if (options["engine"] == "dask") is not bool(options["scheduler"]):
        raise Refused("--engine dask and --scheduler ADDRESS go together; start one with `dask scheduler --host 127.0.0.1`")
    out = options["out"] or Path("sweeps") / Path(name).stem.replace(":", ".")
    sweep = Sweep(name, gridded(values, options), out, options["timeout"])
    points = [point for point in sweep.points if options["only"] in (None, point.key)]
    todo = [point for point in points if options["force"] or point.key not in sweep.finished()]
    workers = 1 if sweep.subject.timed else options["workers"]
    click.echo(planned(sweep, len(todo), workers), err=True)
    if options["only_plan"]:
        return 0
    failed = run(sweep, todo, options, workers) if todo else {}
    lines, path = sweep.table()
    if lines:
        click.echo(framed(lines).to_string(index=False, max_rows=ROWS_SHOWN))
    click.echo(f"{len(lines)} rows in {path}", err=True)
    again = ["flashspec", *(word for word in sys.argv[1:] if word not in ("--only", options["only"])), "--only"]
    for point in [point for point in todo if point.key in failed]:
        said = " ".join(f"{name}={value}" for name, value in point.values.items())
        click.echo(f"failed: {said}: {failed[point.key]}\n  again: {shlex.join([*again, point.key])}", err=True)
    return 1 if failed else 0


def gridded(values: tuple[str, ...], options: dict[str, Any]) -> Grid:
    """The grid of a command line: that of its file, with its own values, sample and seed."""
    grid = read(options["grid"]) if options["grid"] else Grid()
    if len(given := dict(map(spoken, values))) < len(values):
        raise Refused("a parameter is given twice; give all its values in one -p, by commas")
    named = {name: options[name] for name in ("sample", "seed") if options[name] is not None}
    return replace(grid, product={**grid.product, **given}, **named)


def planned(sweep: Sweep, todo: int, workers: int) -> str:
    """How many points there are, are finished and are to do, and how long that may take."""
    each = sweep.seconds_a_point() if todo else None
    long = f", about {tqdm.format_interval(each * todo / workers)} with --workers {workers}" if each else ""
    return f"{sweep.name}: {len(sweep.points)} points, {len(sweep.finished())} done, {todo} to do{long}"


def run(sweep: Sweep, todo: list[Point], options: dict[str, Any], workers: int) -> dict[str, str]:
    """Make points on the engine that was chosen, with progress on standard error; why some failed, by key."""
    address = options["scheduler"] if options["engine"] == "dask" else None
    with (
        engines.dask(address, options["trusted"]) if address else engines.local(workers) as engine,
        tqdm(total=len(sweep.points), initial=len(sweep.points) - len(todo), desc=sweep.name, unit="point") as bar,
    ):
        return sweep.run(engine, todo, options["retries"], bar.update)

"""`flashspec run`, `list`, `sweep`, `notebooks` and `pages`: experiments, and pages made of their tables."""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from flashspec.cli.flags import COUNT, FILE, RESULTS, At, given, option, with_flags, with_options
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import REFERENCE
from flashspec.models.folder import PAIRS
from flashspec.parameters import Refused
from flashspec.refusals import refuse
from flashspec.study import engines
from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import NotebookFailed, execute_all, found_in
from flashspec.study.registry import EXPERIMENTS
from flashspec.study.summary import short, summary
from flashspec.study.sweep import Grid, Point, Sweep, read_grid, spoken

ROWS_SHOWN = 40
SESSION = ("thesis", "taught", "smollm2")  # races whose output the README shows
ROLES = {"target": "--target", "draft": "--draft"}
OPTIONS = with_options(
    click.option("--fresh", is_flag=True, help="Measure on this machine instead of showing the stored table."),
    click.option("--preset", default="", metavar="NAME", help="Start from named parameters, such as smoke."),
    click.option("--results", **RESULTS),
)


class Experiments(click.Group):
    """One command per experiment, made from its parameters on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """The experiment's fields as flags; a preset's name gives its experiment with its values."""
        found = EXPERIMENTS.preset(name)

        @click.command(name, help=found.summary)
        @with_flags(found.params)
        @OPTIONS
        def call(**options: Any) -> None:
            run_one(found, {**options, "preset": options["preset"] or ("" if name in EXPERIMENTS else name)})

        return call


def run_one(experiment: Experiment, options: dict[str, Any]) -> None:
    """Run one experiment, or find its stored table, and show it."""
    params = experiment.preset(options["preset"], **given(experiment.params, options))
    results = experiment.run(params, fresh=options["fresh"], root=options["results"], progress=True)
    looks: Any = {"index": False, "max_rows": ROWS_SHOWN, "na_rep": "", "float_format": short}
    click.echo(summary(results).to_string(**looks))
    click.echo(f"{len(results.rows)} rows in {results.path}; {results.machine}", err=True)


@click.command("run", cls=Experiments, invoke_without_command=True)
@OPTIONS
@click.pass_context
def run_command(ctx: click.Context, **options: Any) -> None:
    """Run an experiment; without a name and with --preset, run that preset of every experiment."""
    if ctx.invoked_subcommand is None and not options["preset"]:
        click.echo(ctx.get_help())
    for experiment in EXPERIMENTS.values() if ctx.invoked_subcommand is None and options["preset"] else ():
        run_one(experiment, options)


@click.command("list")
def list_command() -> None:
    """List experiments, methods and models, shipped and published."""
    models = [(f"{flag} {name}", f"flashspec/data/{at}") for role, flag in ROLES.items() for name, at in REFERENCE[role].items()]
    models += [(f"{ROLES[role]} {name}", model.told) for name, pair in PAIRS.items() for role, model in pair.items()]
    rows = {
        "experiments": [(name, found.summary) for name, found in EXPERIMENTS.items()],
        "presets": [(name, f"of {found.name}") for name, found in EXPERIMENTS.presets().items()],
        "methods": [(name, differing(method)) for name, method in METHODS.items()],
        "models": models,
    }
    formatter = click.HelpFormatter(width=110)
    for title, entries in rows.items():
        with formatter.section(title):
            formatter.write_dl(entries or [("none", "")])
    click.echo(formatter.getvalue().rstrip())


def differing(method: Method) -> str:
    """Where a method differs from plain decoding."""
    plain = vars(Method())
    changed = [f"{name}={value}" for name, value in vars(method).items() if value != plain[name]]
    return ", ".join(changed) or "the target alone"


@click.command("sweep")
@click.argument("name", metavar="NOTEBOOK_OR_EXPERIMENT")
@click.option("-p", "values", multiple=True, metavar="NAME=VALUES", help="Values by commas, or a range, 1..12.")
@click.option("--grid", type=FILE, help="A YAML file with product, zip, sample and seed.")
@with_flags(Grid, skip=("product", "zip"))
@click.option("--out", type=At(), help="Folder of the results; default sweeps/NAME.")
@option("--engine", type=click.Choice(["local", "dask"]), default="local", help="Processes here, or the workers of a scheduler.")
@option("--workers", type=COUNT, default=1, help="Processes here; timed experiments run one at a time.")
@click.option("--scheduler", metavar="ADDRESS", help="Of Dask: tcp://127.0.0.1:8786, or tls://HOST:8786.")
@click.option("--trusted", is_flag=True, help="Allow tcp:// to another machine, in a network that is yours alone.")
@option("--timeout", type=click.IntRange(1, 10**6), default=3600, help="Seconds after which a point is stopped.")
@option("--retries", type=click.IntRange(0, 100), default=1, help="More attempts at a point that failed.")
@click.option("--only", metavar="KEY", help="One point alone, as a failure names it.")
@click.option("--force", is_flag=True, help="Make finished points again.")
@click.option("--plan", is_flag=True, help="Say what there is to do, and do nothing.")
def sweep_command(name: str, values: tuple[str, ...], **options: Any) -> int:
    """Run an experiment or a notebook at every point of a grid; status 1 if a point failed.

    Finished points are kept by their content and never made again: run the same command to go on where it stopped.
    """
    if (options["engine"] == "dask") is not bool(options["scheduler"]):
        raise Refused("--engine dask and --scheduler ADDRESS go together; start one with `dask scheduler --host 127.0.0.1`")
    out = options["out"] or Path("sweeps") / Path(name).stem.replace(":", ".")
    sweep = Sweep(name, gridded(values, options), out, options["timeout"])
    ready, workers = sweep.finished(), 1 if sweep.experiment.measured else options["workers"]
    chosen = [point for point in sweep.points if options["only"] in (None, point.key)]
    todo = [point for point in chosen if options["force"] or point.key not in ready]
    seconds = sweep.seconds_for(todo, ready) if todo else None
    long = f", about {tqdm.format_interval(seconds / workers)} with --workers {workers}" if seconds else ""
    click.echo(f"{name}: {len(sweep.points)} points, {len(ready)} done, {len(todo)} to do{long}", err=True)
    if options["plan"]:
        return 0
    failed = run(sweep, todo, options, workers) if todo else {}
    table, path = sweep.table(sweep.finished() if todo else ready)
    if len(table):
        click.echo(table.to_string(index=False, max_rows=ROWS_SHOWN))
    click.echo(f"{len(table)} rows in {path}", err=True)
    again = ["flashspec", *(word for word in sys.argv[1:] if word not in ("--only", options["only"])), "--only"]
    for point in [point for point in todo if point.key in failed]:
        said = " ".join(f"{name}={value}" for name, value in point.values.items())
        click.echo(f"failed: {said}: {failed[point.key]}\n  again: {shlex.join([*again, point.key])}", err=True)
    return 1 if failed else 0


def gridded(values: tuple[str, ...], options: dict[str, Any]) -> Grid:
    """The grid of a command line: that of its file, with its own values, sample and seed."""
    grid = read_grid(options["grid"]) if options["grid"] else Grid()
    if len(own := dict(map(spoken, values))) < len(values):
        raise Refused("a parameter is given twice; give all its values in one -p, by commas")
    return replace(grid, product={**grid.product, **own}, **given(Grid, options))


def run(sweep: Sweep, todo: list[Point], options: dict[str, Any], workers: int) -> dict[str, str]:
    """Make points on the chosen engine, with progress on standard error; why some failed, by key."""
    address, total = options["scheduler"], len(sweep.points)
    with (
        engines.dask(address, options["trusted"]) if address else engines.local(workers) as engine,
        tqdm(total=total, initial=total - len(todo), desc=sweep.name, unit="point") as bar,
    ):
        return sweep.run(engine, todo, options["retries"], bar.update)


@click.command("notebooks")
@click.argument("source", type=At())
@click.argument("out", type=At())
@click.option("--fresh", is_flag=True, help="Measure on this machine instead of showing stored tables.")
@click.option("-p", "values", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; can be given again.")
def notebooks_command(source: Path, out: Path, fresh: bool, values: tuple[tuple[str, str], ...]) -> int:
    """Run a notebook, or all in a folder, and write them to another; exit status 1 if a cell failed."""
    try:
        execute_all(found_in(source), out, fresh, dict(values))
    except NotebookFailed as error:
        refuse(str(error))
        return 1
    return 0


@click.command("pages")
@click.argument("readme", type=At())
def pages_command(readme: Path) -> None:
    """Update a page's results and its picture from the stored tables."""
    from flashspec.study.answers import table, update

    update(readme, table() + session())


def session(root: Path | None = None) -> str:
    """What `flashspec run` prints for the stored races of SESSION, in Markdown; nothing is measured."""
    said = io.StringIO()
    for name in SESSION:
        experiment = EXPERIMENTS.preset(name)
        if experiment.stored(name, root):
            said.write(f"$ flashspec run {name}\n")
            with redirect_stdout(said), redirect_stderr(io.StringIO()):
                run_one(experiment, {"preset": name, "fresh": False, "results": root})
    return f"\n\n```console\n{said.getvalue()}```" if said.getvalue() else ""

"""`flashspec run`, `list`, `notebooks` and `pages`: experiments, and what is made of their tables."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click

from flashspec.cli.flags import RESULTS, At, flags, given
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import REFERENCE
from flashspec.models.pairs import PAIRS
from flashspec.refusals import refuse
from flashspec.study.experiment import Experiment
from flashspec.study.registry import EXPERIMENTS
from flashspec.study.summary import short, summary

ROWS_SHOWN = 40
SESSION = ("thesis", "taught", "smollm2")  # races whose output the README shows
ROLES = {"target": "--target", "draft": "--draft"}
OPTIONS = (
    click.Option(["--fresh"], is_flag=True, help="Measure on this machine instead of showing the stored table."),
    click.Option(["--preset"], metavar="NAME", help="Start from named parameters, such as smoke."),
    click.Option(["--results"], **RESULTS),
)


class Experiments(click.Group):
    """One command per experiment, made from its parameters on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """The experiment's fields as flags; a preset's name gives its experiment with the preset's values."""
        found = EXPERIMENTS[name] if name in EXPERIMENTS else EXPERIMENTS.preset(name)

        def call(**options: Any) -> None:
            run_one(found, {**options, "preset": options["preset"] or (name if name not in EXPERIMENTS else None)})

        return click.Command(name, callback=call, params=[*flags(found.params), *OPTIONS], help=found.summary)


def run_one(experiment: Experiment, options: dict[str, Any]) -> None:
    """Run one experiment, or find its stored table, and show it."""
    base = experiment.preset(options["preset"]) if options["preset"] else experiment.params()
    params = experiment.parse({**vars(base), **given(experiment.params, options)})
    results = experiment.run(params, fresh=options["fresh"], root=options["results"], progress=True)
    looks: Any = {"index": False, "max_rows": ROWS_SHOWN, "na_rep": "", "float_format": short}
    click.echo(summary(results).to_string(**looks))
    click.echo(f"{len(results.rows)} rows in {results.path}; {results.machine}", err=True)


@click.command("run", cls=Experiments, params=list(OPTIONS), invoke_without_command=True)
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


@click.command("notebooks")
@click.argument("source", type=At())
@click.argument("out", type=At())
@click.option("--fresh", is_flag=True, help="Measure on this machine instead of showing stored tables.")
@click.option("-p", "values", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; can be given again.")
def notebooks_command(source: Path, out: Path, fresh: bool, values: tuple[tuple[str, str], ...]) -> int:
    """Run a notebook, or all in a folder, and write them to another folder; exit status 1 if a cell failed."""
    from flashspec.study.notebooks import NotebookFailed, execute_all, found_in

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
    """What `flashspec run` prints for the stored races of SESSION, as a block of Markdown; nothing is measured."""
    said = io.StringIO()
    for name in SESSION:
        experiment = EXPERIMENTS.preset(name)
        if experiment.stored(name, root):
            said.write(f"$ flashspec run {name}\n")
            with redirect_stdout(said), redirect_stderr(io.StringIO()):
                run_one(experiment, {"preset": name, "fresh": False, "results": root})
    return f"\n\n```console\n{said.getvalue()}```" if said.getvalue() else ""

"""`flashspec run`: one experiment with flags from its parameters, or a preset of all of them."""

from __future__ import annotations

from typing import Any

import click

from flashspec.cli.flags import At, flags, given
from flashspec.study.check import check
from flashspec.study.compare import shown
from flashspec.study.experiment import Experiment
from flashspec.study.registry import EXPERIMENTS
from flashspec.study.tables import Results

ROWS_SHOWN = 40
OPTIONS = (
    click.Option(["--fresh"], is_flag=True, help="Measure on this machine instead of showing the stored table."),
    click.Option(["--preset"], metavar="NAME", help="Start from named parameters, such as smoke."),
    click.Option(["--check"], is_flag=True, help="Compare with the stored table and write nothing; status 1 if it differs."),
    click.Option(["--results"], type=At(), help="Folder of the tables, default book/results."),
)


class Experiments(click.Group):
    """One command an experiment, made from its parameters when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        return command_of(EXPERIMENTS[name]) if name in EXPERIMENTS else command_of(EXPERIMENTS.preset(name), name)


def command_of(experiment: Experiment, preset: str = "") -> click.Command:
    """`flashspec run NAME`: the experiment's fields as flags, on top of a preset where the name is a preset's."""

    def call(**options: Any) -> int:
        return run_one(experiment, {**options, "preset": options["preset"] or preset})

    return click.Command(
        preset or experiment.name, callback=call, params=[*flags(experiment.params), *OPTIONS], help=experiment.summary
    )


def run_one(experiment: Experiment, options: dict[str, Any]) -> int:
    """Run or check one experiment; the status is 1 if a check found differences."""
    base = experiment.preset(options["preset"]) if options["preset"] else experiment.params()
    params = experiment.parse({**vars(base), **given(experiment.params, options)})
    if options["check"]:
        found = check(experiment, params, options["results"])
        click.echo("\n".join(found) or f"{experiment.name}: as stored" + (" (wall clock, not compared)" * experiment.measured))
        return 1 if found else 0
    report(experiment.run(params, fresh=options["fresh"], root=options["results"], progress=True))
    return 0


def report(results: Results) -> None:
    """The table (of a race: its speedups), the middle left out where it is long, its file and what it was measured on."""
    raced = results.origin["experiment"] == "race"
    click.echo((shown(results.frame) if raced else results.frame).to_string(index=False, max_rows=ROWS_SHOWN))
    click.echo(f"{len(results.rows)} rows in {results.path}; {results.machine}", err=True)


@click.command("run", cls=Experiments, params=list(OPTIONS), invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context, **options: Any) -> int | None:
    """Run an experiment; without a name and with --preset, run that preset of every experiment."""
    if ctx.invoked_subcommand is not None:
        return None
    if not options["preset"]:
        click.echo(ctx.get_help())
        return 0
    return max((run_one(experiment, options) for experiment in EXPERIMENTS.values()), default=0)

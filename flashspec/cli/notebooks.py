"""`flashspec notebooks`: notebooks run with validated parameters, each written only when every cell ran."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.cli.flags import At
from flashspec.refusals import refuse
from flashspec.study.notebooks import NotebookFailed, execute_all, found_in


@click.command("notebooks")
@click.argument("source", type=At())
@click.argument("out", type=At())
@click.option("--fresh", is_flag=True, help="Measure on this machine instead of showing stored tables.")
@click.option("-p", "values", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; can be given again.")
def command(source: Path, out: Path, fresh: bool, values: tuple[tuple[str, str], ...]) -> int:
    """Run a notebook, or all of a folder, and write them to a folder; status 1 if a cell failed."""
    try:
        execute_all(found_in(source), out, fresh, dict(values))
    except NotebookFailed as error:
        refuse(str(error))
        return 1
    return 0

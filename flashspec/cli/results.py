"""`flashspec results`: what is stored, where it comes from, and whether every bit of it is as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flashspec import provenance
from flashspec.study import tables
from flashspec.study.parameters import Refused

ROOT = click.option("--results", "root", type=click.Path(path_type=Path), help="Folder of the tables, default book/results.")


@click.group("results")
def command() -> None:
    """List stored tables, show one with its origin, or verify them all."""


@command.command("ls")
@ROOT
def ls(root: Path | None) -> None:
    """One line a table: file, rows, day and machine."""
    for path in paths(root):
        facts = tables.opened(path)[1]
        click.echo(f"{path.parent.name}/{path.name}  {facts['rows']} rows  {provenance.describe(facts)}")


@command.command("show")
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def show(path: Path) -> None:
    """The origin of a table, and its rows."""
    table, facts = tables.opened(path)
    click.echo(json.dumps(facts, indent=2, sort_keys=True))
    click.echo(table.to_pandas().to_string(index=False, max_rows=40))


@command.command("verify")
@ROOT
def verify(root: Path | None) -> int:
    """Check every table below a folder; status 2 and one sentence for each that is not as it was written."""
    found, damaged = paths(root), 0
    for path in found:
        try:
            tables.opened(path)
        except Refused as error:
            damaged += 1
            click.echo(f"error: {error}", err=True)
    click.echo(f"{len(found) - damaged} of {len(found)} tables are as they were written")
    return 2 if damaged else 0


def paths(root: Path | None) -> list[Path]:
    """Every Parquet file below a folder; Refused where there is no such folder."""
    folder = root or tables.default_root()
    if not folder.is_dir():
        raise Refused(f"there is no folder {folder.name}; name one with --results")
    return sorted(folder.rglob("*.parquet"))

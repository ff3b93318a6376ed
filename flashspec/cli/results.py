"""`flashspec results`: stored tables listed, shown, compared, verified and exported; none is ever changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from flashspec.cli.flags import FILE, RESULTS, At
from flashspec.models.folder import verify_digests
from flashspec.models.writing import new_file
from flashspec.parameters import Refused
from flashspec.refusals import in_words, refuse
from flashspec.study import tables

ROWS_SHOWN = 40
# A record of a draft names these files of it and does not hold them.
APART = (".safetensors", ".index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@click.group("results")
def command() -> None:
    """List stored tables, show one with its origin, compare two, verify all, or export one."""


@command.command("ls")
@click.option("--results", "root", **RESULTS)
def ls(root: Path | None) -> None:
    """List the stored tables: rows, kind, machine, day, commit and seconds."""
    click.echo(tables.listed(folder(root)).to_string())


@command.command("show")
@click.argument("path", type=FILE)
def show(path: Path) -> None:
    """The origin of a table, and its rows."""
    table, facts = tables.opened(path)
    click.echo(json.dumps(facts, indent=2, sort_keys=True))
    click.echo(table.to_pandas().to_string(index=False, max_rows=ROWS_SHOWN))


@command.command("diff")
@click.argument("one", type=FILE)
@click.argument("other", type=FILE)
def diff(one: Path, other: Path) -> int:
    """Say which parameters, facts of the origin and rows differ between two tables, A and B; status 1 if any does."""
    (here, mine), (there, theirs) = tables.opened(one), tables.opened(other)
    found = [*tables.unlike_facts(mine, theirs), *tables.unlike_rows(here.to_pandas(), there.to_pandas())]
    click.echo("\n".join(found) or "the two tables say the same")
    return 1 if found else 0


@command.command("export")
@click.argument("path", type=FILE)
@click.argument("out", type=At())
def export(path: Path, out: Path) -> None:
    """Write a table to a new file: OUT.csv, its origin beside it in OUT.json, or OUT.parquet, which keeps it inside."""
    table, facts = tables.opened(path)
    if out.suffix not in (".csv", ".parquet"):
        raise Refused(f"a table is exported to a name that ends in .csv or .parquet, got {out.name}")
    home = path.resolve().parent
    store = [home.parent if facts.get("experiment") == home.name else home]
    with new_file(out, store) as part:
        if out.suffix == ".parquet":
            shutil.copyfile(path, part)
            return
        from pyarrow import csv

        csv.write_csv(table, part)
        with new_file(out.with_suffix(".json"), store) as about:
            about.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@command.command("verify")
@click.option("--results", "root", **RESULTS)
@click.option("--digests", is_flag=True, help="Check digests and origins alone; compute no table again.")
def verify(root: Path | None, digests: bool) -> int:
    """Check every table and record below a folder, and compute again what is a function of the source.

    Status 2 and one sentence for each that is not as it was written, or not what the source computes.
    """
    from tqdm import tqdm

    from flashspec.study.registry import again

    found = sorted(path for pattern in ("*.parquet", "digests.json") for path in folder(root).rglob(pattern))
    wrong = afresh = 0
    for path in tqdm(found, desc="verifying", unit="file", delay=0.5):
        try:
            if path.suffix == ".json":
                verify_digests(path.parent, APART)
            elif digests:
                tables.consistent(path)
            elif left := again(path):
                click.echo(f"{path.parent.name}/{path.name} is not computed again: {left}")
            else:
                afresh += left is not None
        except (OSError, ValueError) as error:
            wrong += 1
            refuse(in_words(error))
    click.echo(f"{len(found) - wrong} of {len(found)} tables and records are as they were written, {afresh} computed again")
    return 2 if wrong else 0


def folder(root: Path | None) -> Path:
    """The folder of tables; Refused where there is none."""
    found = root or tables.default_root()
    if not found.is_dir():
        raise Refused(f"there is no folder {found.name}; name one with --results")
    return found

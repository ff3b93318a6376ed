"""`flashspec pages`: the README's table and picture, written from stored tables."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.cli.flags import At


@click.command("pages")
@click.argument("readme", type=At())
def command(readme: Path) -> int:
    """Bring a page with places for results, and its picture, up to date with the stored tables."""
    from flashspec.study.pages import update

    update(readme)
    return 0

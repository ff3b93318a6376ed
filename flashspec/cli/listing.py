"""`flashspec list`: experiments, methods and models by name."""

from __future__ import annotations

import click

from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import REFERENCE
from flashspec.study.registry import EXPERIMENTS

FLAGS = {"target": "--target", "draft": "--draft-model"}


@click.command("list")
def command() -> None:
    """List experiments, methods and shipped models."""
    rows = {
        "experiments": {name: found.summary for name, found in EXPERIMENTS.items()},
        "presets": {name: f"of {found.name}" for name, found in EXPERIMENTS.presets().items()},
        "methods": {name: _words(method) for name, method in METHODS.items()},
        "models": {
            f"{FLAGS[role]} {name}": f"flashspec/data/{folder}"
            for role, names in REFERENCE.items()
            for name, folder in names.items()
        },
    }
    formatter = click.HelpFormatter(width=110)
    for title, entries in rows.items():
        with formatter.section(title):
            formatter.write_dl(list(entries.items()) or [("none", "")])
    click.echo(formatter.getvalue().rstrip())


def _words(method: Method) -> str:
    """Where a method differs from plain decoding."""
    plain = vars(Method())
    changed = [f"{name}={value}" for name, value in vars(method).items() if value != plain[name]]
    return ", ".join(changed) or "the target alone"

"""`flashspec train`: the reference models from scratch, and exits for any model; stopped at any moment, it continues."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.cli.flags import COUNT, At, Value, option
from flashspec.decoding.models import SHIPPED
from flashspec.models.writing import refuse_input, refuse_taken
from flashspec.train.exits import ExitRecipe, default_layers, train_exits
from flashspec.train.reference import make, prepare


@click.group("train", invoke_without_command=True)
@option("--folder", type=At(), default=Path("runs/train"), help="Where to work.")
@click.pass_context
def command(ctx: click.Context, folder: Path) -> None:
    """Train the reference models: hours on two cores, resumable at any point.

    Finished models appear in FOLDER/models; the shipped ones stay as they are. `exits` is apart: minutes of training that write
    a copy of a frozen model with exits to draft with.
    """
    if ctx.invoked_subcommand is not None:
        return
    refuse_input(folder, [SHIPPED])
    refuse_taken(folder, "data/corpus.json")
    card, about = prepare(folder), SHIPPED / "target" / "README.md"
    if about.is_file() and card["sha256"] not in about.read_text(encoding="utf-8"):
        click.echo(f"Python {card['python']}'s library is not the corpus of the shipped models; expect other numbers", err=True)
    click.echo(f"done: {make(folder, card)}")


@command.command("exits")
@option("--model", type=At(), required=True, help="The checkpoint folder to give exits to.")
@option("--out", type=At(), required=True, help="A new folder, the model with its exits; weights are hard links.")
@option("--exits", type=Value(tuple[int, ...]), help="Layers, by commas; an eighth and a quarter of the depth if none are given.")
@option("--rank", type=COUNT, default=ExitRecipe.rank, help="Width of an adapter.")
@option("--exit-steps", type=COUNT, default=ExitRecipe.steps, help="Training steps.")
@option("--text", type=At(), help="A text to train on instead of Python's library.")
def exits(model: Path, out: Path, exits: tuple[int, ...] | None, text: Path | None, **numbers: int) -> None:
    """Train exits for the frozen model in --model, minutes, and write a copy of it that drafts with them."""
    recipe = ExitRecipe(exits or default_layers(model), numbers["rank"], numbers["exit_steps"])
    for layer, (before, after) in train_exits(model, out, recipe, text).items():
        click.echo(f"exit {layer}: agrees with the whole model on {after:.0%} of held-out tokens, {before:.0%} before")
    click.echo(f"done: {out}; decode with --target {out}")

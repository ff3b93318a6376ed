"""`flashspec train`: the reference models from scratch, whole or in parts; stopped at any moment, it continues."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from flashspec.cli.flags import COUNT, At, Value, option
from flashspec.decoding.models import SHIPPED
from flashspec.models.writing import refuse_input, refuse_taken
from flashspec.train.exits import ExitRecipe, default_layers, train_exits
from flashspec.train.reference import DRAFTS, build_draft, build_target, make, prepare, quantise_target

PARTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "all": (make, "Train everything: hours on two cores."),
    "target": (build_target, "Train the target."),
    "quantize": (quantise_target, "Quantise the trained target to 4 bits."),
    **{name: (partial(build_draft, name=name), f"Distil the draft {name!r} on the 4-bit target.") for name in DRAFTS},
}
FOLDER: dict[str, Any] = {"type": At(), "show_default": "runs/train", "help": "Where to work."}


@click.group("train", invoke_without_command=True)
@click.option("--folder", default=Path("runs/train"), **FOLDER)
@click.pass_context
def command(ctx: click.Context, folder: Path) -> None:
    """Train the reference models, all of them or one part: hours on two cores, resumable at any point.

    Finished models appear in FOLDER/models; the shipped ones stay as they are. `exits` is apart: minutes of training that write
    a copy of a frozen model with exits to draft with.
    """
    if ctx.invoked_subcommand is None:
        train_part("all", folder)


def train_part(part: str, folder: Path) -> None:
    """Train one part; refused where its input is missing, told where the corpus is not the shipped models' own."""
    refuse_input(folder, [SHIPPED])
    refuse_taken(folder, "data/corpus.json")
    if part == "quantize" and not (folder / "dense" / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no trained target; run `flashspec train target` first")
    if part in DRAFTS and not (folder / "models" / "target" / "config.json").is_file():
        raise FileNotFoundError("drafts are distilled on the 4-bit target; run `flashspec train quantize` first")
    card, about = prepare(folder), SHIPPED / "target" / "README.md"
    if about.is_file() and card["sha256"] not in about.read_text(encoding="utf-8"):
        click.echo(f"Python {card['python']}'s library is not the corpus of the shipped models; expect other numbers", err=True)
    click.echo(f"done: {PARTS[part][0](folder)}")


def before_the_part() -> Path:
    """The folder that was named before the part, or the default one."""
    above = click.get_current_context().parent
    return above.params["folder"] if above else Path("runs/train")


for name, (_, said) in PARTS.items():
    folder = click.Option(["--folder"], default=before_the_part, **FOLDER)
    command.add_command(click.Command(name, params=[folder], callback=partial(train_part, name), help=said))


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

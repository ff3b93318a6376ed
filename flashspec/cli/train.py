"""`flashspec train` and `flashspec quantize`: the reference models, exits for any model, 4-bit twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flashspec.cli.flags import COUNT, At, Value, option
from flashspec.decoding.models import SHIPPED, folder_of
from flashspec.models.writing import check_free
from flashspec.train import corpus
from flashspec.train.exits import STEPS, ExitRecipe, train_exits
from flashspec.train.quantize import quantize_awq
from flashspec.train.reference import make
from flashspec.train.target import REFERENCE


@click.group("train", invoke_without_command=True)
@option("--folder", type=At(), default=Path("runs/train"), help="Where to work.")
@click.pass_context
def command(ctx: click.Context, folder: Path) -> None:
    """Train the reference models from scratch: hours on two cores, resumable at any point.

    Finished models appear in FOLDER/models; the shipped ones are left alone. `flashspec train exits` is separate: it copies a
    frozen model and adds early exits.
    """
    if ctx.invoked_subcommand is not None:
        return
    check_free(folder, [SHIPPED], "data/corpus.json")
    card, about = corpus.prepare(folder / "data", REFERENCE.vocab_size), SHIPPED / "target" / "README.md"
    if about.is_file() and card["sha256"] not in about.read_text(encoding="utf-8"):
        click.echo(f"Python {card['python']}'s library is not the corpus of the shipped models; expect other numbers", err=True)
    click.echo(f"done: {make(folder, card)}")


@command.command("exits")
@option("--target", type=At(), required=True, help="The checkpoint folder or published name of the model that gets exits.")
@option("--out", type=At(), required=True, help="A new folder for the model with its exits; weights are hard links.")
@option("--exits", type=Value(tuple[int, ...]), metavar="INTEGER,...", help="Layers below the exits; default 1/8 and 1/4 of all.")
@option("--kind", type=click.Choice(("rank", "layer")), default="rank", help="A low-rank step, or a layer with its own cache.")
@option("--rank", type=COUNT, default=STEPS.rank, help="Width of a low-rank step.")
@option("--steps", type=COUNT, help="Training steps; default 150 for a low-rank step, 1500 for a layer.")
@option("--lessons", type=COUNT, default=ExitRecipe.texts, help="Conversations that the model writes to train a layer.")
@option("--work", type=At(), help="Folder of the run, where a killed one continues; default OUT.work.")
@option("--text", type=At(), help="A text to train on instead of Python's library.")
def exits(target: Path, out: Path, kind: str, exits: tuple[int, ...] | None, text: Path | None, **more: Any) -> None:
    """Train early exits for a frozen model and write a copy of it that drafts with them.

    A low-rank step trains in minutes on any text, a layer in hours on conversations that the model writes itself.
    """
    source, steps = folder_of(target, "target"), more["steps"]
    recipe = replace(STEPS, rank=more["rank"]) if kind == "rank" else ExitRecipe(texts=more["lessons"])
    recipe = replace(recipe, exits=exits or (), steps=steps or recipe.steps)
    work = more["work"] or out.with_name(out.name + ".work")
    for layer, (accept, agree) in train_exits(source, out, work, recipe, text).items():
        click.echo(f"exit {layer}: acceptance {accept:.2f} at T = 1, agrees on {agree:.0%} of held-out tokens")
    click.echo(f"done: {out}; decode with --target {out}")


@click.command("quantize")
@click.argument("source", type=At())
@click.argument("out", type=At())
@option("--text", "texts", multiple=True, type=At(), help="Calibration text; may be repeated.")
@option("--group-size", default=128, help="Weights that share a scale: 32, 64 or 128.")
@option("--blocks", type=COUNT, default=16, help="Calibration blocks of 512 tokens.")
def quantize(source: Path, out: Path, texts: tuple[Path, ...], group_size: int, blocks: int) -> None:
    """Quantise the dense checkpoint SOURCE to 4 bits and write it to OUT.

    Without --text, files of the Python standard library calibrate the search; text like what you will decode works better.
    """
    quantize_awq(source, out, corpus.sources(texts, corpus.FILES), group_size, blocks)
    click.echo(f"done: {out}")

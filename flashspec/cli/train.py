"""`flashspec train`: the reference models from scratch, whole or in parts; stopped at any moment, it continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flashspec.cli.flags import COUNT, At
from flashspec.decoding.models import SHIPPED
from flashspec.models.writing import refuse_input, refuse_taken
from flashspec.study.parameters import parse_value
from flashspec.train.reference import (
    DRAFTS,
    TARGET_PHASES,
    Workshop,
    build_draft,
    build_target,
    make,
    quantise_target,
)
from flashspec.train.target import train_target

PARTS = ("all", "target", "quantize", *DRAFTS, "exits")
EXIT_OPTIONS = ("model", "out", "exits", "rank", "text", "exit_steps")


@click.command("train")
@click.argument("part", type=click.Choice(PARTS), default="all")
@click.option("--folder", type=At(), default=Path("runs/train"), show_default=True, help="Where to work.")
@click.option("--branch", type=At(), help="With `target`: a checkpoint.pt to branch off from.")
@click.option("--steps", type=COUNT, help="With --branch: steps at the end of the branch.")
@click.option("--decay", type=click.IntRange(0, 2**31 - 1), help="With --branch: steps of falling learning rate at its end.")
@click.option("--model", type=At(), help="With `exits`: the checkpoint folder to give exits to.")
@click.option("--out", type=At(), help="With `exits`: a new folder, the model with its exits; weights are hard links.")
@click.option("--exits", help="With `exits`: layers, by commas; an eighth and a quarter of the depth where none are given.")
@click.option("--rank", type=COUNT, help="With `exits`: width of an adapter.")
@click.option("--exit-steps", type=COUNT, help="With `exits`: training steps.")
@click.option("--text", type=At(), help="With `exits`: a text to train on instead of Python's library.")
def command(part: str, folder: Path, branch: Path | None, **options: Any) -> None:
    """Train PART of the reference models, or all of them: hours on two cores, resumable at any point.

    Finished models appear in FOLDER/models; the shipped ones stay as they are. `exits` is apart: minutes of training that write
    a copy of the frozen model in --model with exits to draft with; the weights are not copied where the disk allows links.
    """
    asked = {name: options.pop(name) for name in EXIT_OPTIONS}
    if part == "exits":
        give_exits(**asked)
        return
    if any(value is not None for value in asked.values()):
        raise click.UsageError("--model, --out, --exits, --rank, --exit-steps and --text go with `flashspec train exits`")
    changes = {name: value for name, value in options.items() if value is not None}
    if (changes and not branch) or (branch and part != "target"):
        raise click.UsageError("--branch goes with `flashspec train target`, and --steps and --decay with --branch")
    if branch and not branch.is_file():
        raise FileNotFoundError(f"no checkpoint at {branch}; give the checkpoint.pt of a training run")
    refuse_input(folder, [SHIPPED])
    refuse_taken(folder, "data/corpus.json")
    shop = ready(Workshop(folder), part)
    done = train_branch(shop, branch, changes) if branch else train_part(shop, part)
    click.echo(f"done: {done}")


def give_exits(model: Path | None, out: Path | None, exits: str | None, text: Path | None, **numbers: int | None) -> None:
    """Train adapters and say what they brought; `numbers` are rank and exit_steps."""
    from flashspec.train.exits import ExitRecipe, default_layers, depth_of, train_exits

    if model is None or out is None:
        raise click.UsageError("give the model to train exits for and a new folder, with --model FOLDER --out NEW")
    layers = parse_value("exits", tuple[int, ...], exits) if exits else default_layers(depth_of(model))
    given = {name.removeprefix("exit_"): value for name, value in numbers.items() if value is not None}
    report = train_exits(model, out, ExitRecipe(layers, **given), text)
    for layer, share in report.after.items():
        click.echo(
            f"exit {layer}: agrees with the whole model on {share:.0%} of held-out tokens, {report.before[layer]:.0%} before"
        )
    click.echo(f"done: {out}; decode with --target {out}")


def ready(shop: Workshop, part: str) -> Workshop:
    """Refuse a part whose input is missing; then prepare the corpus and say if it is not the shipped models' own."""
    if part == "quantize" and not (shop.work / "dense" / "config.json").is_file():
        raise FileNotFoundError(f"{shop.work} holds no trained target; run `flashspec train target` first")
    if part in DRAFTS and not (shop.models / "target" / "config.json").is_file():
        raise FileNotFoundError("drafts are distilled on the 4-bit target; run `flashspec train quantize` first")
    card, about = shop.prepare(), SHIPPED / "target" / "README.md"
    if about.is_file() and card.sha256 not in about.read_text(encoding="utf-8"):
        click.echo(f"Python {card.python}'s library is not the corpus of the shipped models; expect other numbers", err=True)
    return shop


def train_part(shop: Workshop, part: str) -> Path:
    """Train one part, or everything."""
    if part == "all":
        return make(shop.work)
    if part == "target":
        return build_target(shop)
    return quantise_target(shop, shop.work / "dense") if part == "quantize" else build_draft(shop, part)


def train_branch(shop: Workshop, branch: Path, changes: dict[str, int]) -> Path:
    """Continue the target from any run's checkpoint, with its own steps and decay, in a folder of its own."""
    recipe = replace(TARGET_PHASES[-1], schedule=replace(TARGET_PHASES[-1].schedule, **changes))
    folder = shop.work / f"branch-{recipe.schedule.steps}-{recipe.schedule.decay}"
    refuse_input(folder, [branch.parent])
    train_target(shop.data, folder, recipe, branch)
    return folder

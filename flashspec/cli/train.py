"""`flashspec train`, `quantize` and `draft`: reference models, exits, 4-bit twins, and drafts cut out of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from flashspec.cli.flags import COUNT, DRAFT, TARGET, TEXTS, At, K, Value, given, option, with_flags
from flashspec.decoding.models import SHIPPED, Models, folder_of, load
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.registry import RANKED, file_of
from flashspec.models.family import FAMILY, Design
from flashspec.models.writing import check_free, extended, made
from flashspec.train import corpus
from flashspec.train.design import Place, make_draft
from flashspec.train.lessons import LessonRecipe
from flashspec.train.quantize import quantize_awq
from flashspec.train.reference import REFERENCE, make
from flashspec.train.taught import STEPS, train_borrowed, train_exits


@click.group("train", invoke_without_command=True)
@option("--folder", type=At(), default=Path("runs/train"), help="Where to work.")
@click.pass_context
def train(ctx: click.Context, folder: Path) -> None:
    """Train the reference models from scratch: hours on two cores, resumable at any point.

    Finished models appear in FOLDER/models; the shipped ones are left alone. `flashspec train exits` is separate: it copies a
    frozen model and adds early exits.
    """
    if ctx.invoked_subcommand is not None:
        return
    check_free(folder, [SHIPPED], "data/corpus.json")
    card, about = corpus.prepare(folder / "data", REFERENCE.vocab_size), SHIPPED / "target" / "README.md"
    if about.is_file() and card["sha256"] not in about.read_text(encoding="utf-8"):
        click.echo(f"Python {card['python']}'s library is not the shipped models' corpus; expect other numbers", err=True)
    click.echo(f"done: {make(folder, card)}")


@train.command("exits")
@option("--target", type=At(), required=True, help="The model that gets exits: a checkpoint folder or a published name.")
@option("--out", type=At(), required=True, help="A new folder for the copy; weights are hard links.")
@option("--exits", type=Value(tuple[int, ...]), metavar="INTEGER,...", help="Layers below the exits; default 1/8 and 1/4.")
@option("--kind", type=click.Choice(("rank", "layer")), default="rank", help="A low-rank step, or a layer with its own cache.")
@option("--rank", type=COUNT, default=STEPS.rank, help="Width of a low-rank step.")
@option("--steps", type=COUNT, help="Training steps; default 150 for a low-rank step, 1500 for a layer.")
@option("--lessons", type=COUNT, default=LessonRecipe.texts, help="Conversations that train a layer.")
@option("--work", type=At(), help="Folder of the run, where a killed one continues; default OUT.work.")
@option("--text", type=At(), help="A text to train on instead of Python's library.")
def exits(target: Path, out: Path, kind: str, exits: tuple[int, ...] | None, text: Path | None, **more: Any) -> None:
    """Train early exits for a frozen model and write a copy of it that drafts with them.

    A low-rank step trains in minutes on any text, a layer in hours on conversations that the model writes itself.
    """
    source, steps = folder_of(target, "target"), more["steps"]
    recipe = replace(STEPS, rank=more["rank"]) if kind == "rank" else LessonRecipe(texts=more["lessons"])
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


def learning(target: str | Path, texts: tuple[Path, ...]) -> tuple[Models, np.ndarray]:
    """A target with float32 matrices, and the texts, or the standard library's, as one stream of its token ids."""
    models = load(target, None, "float32", "cpu", "dense")
    return models, corpus.encoded(models.tokenizer, corpus.sources(texts))


@click.group("draft")
def draft() -> None:
    """Cut drafts out of a target and distil them on what the target writes."""


@draft.command("design")
@option("--out", type=At(), required=True, help="Folder of the finished draft.")
@option("--work", type=At(), help="Folder of the run, default OUT.work.")
@K
@TARGET
@TEXTS
@with_flags(Design)
def design(out: Path, work: Path | None, k: int, **options: Any) -> None:
    """Prune a target, distil the draft, write a Hugging Face folder with speculative.json; resumable."""
    recipe, place = Design(**given(Design, options)), Place(work or out.with_name(out.name + ".work"), out)
    make_draft(*learning(options["target"], options["texts"]), place, recipe, k)
    click.echo(f'done: {out}; serve it with vllm serve TARGET --speculative-config "$(cat {out / "speculative.json"})"')


@draft.command("teach")
@option("--base", help="The model to cut layers from, which lends embedding, norm and head; default the target.")
@option("--out", type=At(), required=True, help="A new folder for the draft.")
@option("--work", type=At(), help="Folder of lessons and runs, shared by drafts of one target; default OUT.work.")
@option("--layers", type=COUNT, default=LessonRecipe.layers, help="Layers of the draft.")
@option("--lessons", "texts", type=COUNT, default=LessonRecipe.texts, help="Conversations that the target writes.")
@option("--steps", type=COUNT, default=LessonRecipe.steps, help="Training steps of eight conversations.")
@option("--rate", type=click.FloatRange(min=0, min_open=True), default=LessonRecipe.rate, help="Highest learning rate.")
@TARGET
def teach(target: str, base: str | None, out: Path, work: Path | None, **options: Any) -> None:
    """Teach a few layers of a model to imitate a chat model. An interrupted run continues.

    The draft holds its layers alone; `flashspec export` writes a complete model. --lessons and --steps set the time: hours for
    a model of a billion parameters on two cores.
    """
    source = folder_of(target, "target")
    lends, place = (folder_of(base, "draft") if base else source), work or out.with_name(out.name + ".work")
    accept, agree = train_borrowed(source, lends, out, place, LessonRecipe(**options))
    click.echo(f"acceptance {accept:.2f} at T = 1, agrees on {agree:.0%} of held-out tokens; decode with --draft {out}")


@draft.command("rank")
@DRAFT
@option("--head", type=click.Choice(RANKED), default=RANKED[0], help="The head that will use the ranking.")
@option("--out", type=At(), required=True, help="A new folder for the copy; weights are hard links.")
@TEXTS
def rank(draft: str, head: str, out: Path, texts: tuple[Path, ...]) -> None:
    """Rank the vocabulary by a text in a copy of the draft. For vocab_trim, give text that the target wrote."""
    folder = folder_of(draft, "draft")
    with extended(folder, out, file_of(head)) as path:
        models, stream = learning(folder, texts)
        weight = models.target.head_weight
        ranked = ranked_by_frequency(torch.from_numpy(stream.astype(np.int64)), len(weight))
        ShortlistHead.build(weight, ranked).save(path)
    click.echo(f"done: {out}; decode with --draft {out} --head {head}")


@draft.command("family")
@click.argument("names", nargs=-1)
@option("--folder", type=At(), default=Path("runs/family"), help="Where to work.")
@TARGET
@TEXTS
def family(names: tuple[str, ...], folder: Path, target: str, texts: tuple[Path, ...]) -> None:
    """Build the drafts NAMES of the family, or all of them; finished ones are skipped."""
    unknown = [name for name in names if name not in FAMILY]
    if unknown:
        raise ValueError(f"the family has no {unknown[0]!r}; it has: {', '.join(FAMILY)}")
    with made(work := folder / "work"):
        models, stream = learning(target, texts)
        for name in names or FAMILY:
            place = Place(work / name, folder / "models" / name, work / "shared")
            click.echo(f"done: {make_draft(models, stream, place, FAMILY[name], 4)}")

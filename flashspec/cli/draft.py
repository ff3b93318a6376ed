"""`flashspec draft`: cut a wide, shallow draft out of a dense checkpoint, or build the whole family of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from flashspec.cli.flags import COUNT, DRAFT, TARGET, TEXTS, At, K, given, option, with_flags
from flashspec.decoding.models import Models, folder_of, load
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.registry import RANKED, file_of
from flashspec.models.family import FAMILY, Design
from flashspec.models.writing import copy_checkpoint, fresh_folder, made, sign
from flashspec.train import corpus
from flashspec.train.borrowed import BorrowedRecipe, train_borrowed
from flashspec.train.design import Place, make_draft


def dense(target: str | Path) -> Models:
    """A target with float32 matrices, as training and pruning need them."""
    return load(target, None, "float32", "cpu", "dense")


def stream_of(models: Models, texts: tuple[Path, ...]) -> np.ndarray:
    """The given texts, or the standard library's, as one stream of the target's token ids."""
    return corpus.encoded(models.tokenizer, corpus.sources(texts))


@click.group("draft")
def command() -> None:
    """Cut drafts out of a target and distil them on what the target writes."""


@command.command("design")
@option("--out", type=At(), required=True, help="Folder of the finished draft.")
@option("--work", type=At(), help="Folder of the run, default OUT.work.")
@K
@TARGET
@TEXTS
@with_flags(Design)
def design(out: Path, work: Path | None, k: int, **options: Any) -> None:
    """Prune a target, distil the draft, and write a Hugging Face folder with speculative.json. An interrupted run continues."""
    recipe, place = Design(**given(Design, options)), Place(work or out.with_name(out.name + ".work"), out)
    models = dense(options["target"])
    make_draft(models, stream_of(models, options["texts"]), place, recipe, k)
    click.echo(f'done: {out}; serve it with vllm serve TARGET --speculative-config "$(cat {out / "speculative.json"})"')


@command.command("teach")
@option("--base", help="The model to cut layers from; default the target. It lends embedding, norm and head.")
@option("--out", type=At(), required=True, help="A new folder for the draft.")
@option("--work", type=At(), help="Folder of lessons and runs, shared by drafts of one target; default OUT.work.")
@option("--layers", type=COUNT, default=BorrowedRecipe.layers, help="Layers of the draft.")
@option("--lessons", "texts", type=COUNT, default=BorrowedRecipe.texts, help="Conversations that the target writes.")
@option("--steps", type=COUNT, default=BorrowedRecipe.steps, help="Training steps of eight conversations.")
@option("--rate", type=click.FloatRange(min=0, min_open=True), default=BorrowedRecipe.rate, help="Highest learning rate.")
@TARGET
def teach(target: str, base: str | None, out: Path, work: Path | None, **options: Any) -> None:
    """Teach a few layers of a model to imitate a chat model. An interrupted run continues.

    The draft holds its layers alone; `flashspec export` writes a complete model. --lessons and --steps set the time: hours for
    a model of a billion parameters on two cores.
    """
    source = folder_of(target, "target")
    lends, place = (folder_of(base, "draft") if base else source), work or out.with_name(out.name + ".work")
    accept, agree = train_borrowed(source, lends, out, place, BorrowedRecipe(**options))
    click.echo(f"acceptance {accept:.2f} at T = 1, agrees on {agree:.0%} of held-out tokens; decode with --draft {out}")


@command.command("rank")
@DRAFT
@option("--head", type=click.Choice(RANKED), default=RANKED[0], help="The head that will use the ranking.")
@option("--out", type=At(), required=True, help="A new folder for the draft with its ranking; weights are hard links.")
@TEXTS
def rank(draft: str, head: str, out: Path, texts: tuple[Path, ...]) -> None:
    """Rank the vocabulary by a text and write a copy of the draft with it. For vocab_trim, give text that the target wrote."""
    folder = folder_of(draft, "draft")
    with fresh_folder(out, [folder]) as part:
        models = dense(folder)
        weight = models.target.head_weight
        ranked = ranked_by_frequency(torch.from_numpy(stream_of(models, texts).astype(np.int64)), len(weight))
        copy_checkpoint(folder, part)
        ShortlistHead.build(weight, ranked).save(part / file_of(head))
        sign(part, file_of(head))
    click.echo(f"done: {out}; decode with --draft {out} --head {head}")


@command.command("family")
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
        models = dense(target)
        stream = stream_of(models, texts)
        for name in names or FAMILY:
            place = Place(work / name, folder / "models" / name, work / "shared")
            click.echo(f"done: {make_draft(models, stream, place, FAMILY[name], 4)}")

"""`flashspec draft`: a wide, shallow draft out of any supported dense checkpoint, or the whole family of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from flashspec.cli.flags import COUNT, At, given, with_flags
from flashspec.decoding.models import SHIPPED, Models, folder_of, load
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.registry import RANKED, file_of
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import record
from flashspec.models.writing import check_free, copy_checkpoint, fresh_folder
from flashspec.sampling import GREEDY
from flashspec.study.drafts import FAMILY as FINISHED
from flashspec.study.drafts import finished
from flashspec.train import corpus
from flashspec.train.design import Design, Place, encoded, make_draft, speculative
from flashspec.train.family import FAMILY, build
from flashspec.train.package import sign
from flashspec.train.shipping import PROPOSALS, record_point, ship
from flashspec.train.tune import VARIANTS, variant

TARGET = click.option("--target", default="reference", show_default=True, help="A shipped model or a checkpoint folder.")
TEXT = click.option(
    "--text", "texts", type=At(exists=True, dir_okay=False), multiple=True,
    help="UTF-8 text to calibrate on, prompt with and hold out; may be repeated. Default: Python's standard library.",
)  # fmt: skip


@click.group("draft")
def command() -> None:
    """Drafts cut out of a target and distilled on what the target writes."""


@command.command("design")
@click.option("--out", type=At(), required=True, help="Folder of the finished draft.")
@click.option("--work", type=At(), help="Folder of the run, default OUT with .work behind it.")
@click.option("--k", type=COUNT, default=4, show_default=True, help="Drafted tokens a check, for speculative.json.")
@TARGET
@TEXT
@with_flags(Design)
def design(out: Path, work: Path | None, k: int, **options: Any) -> None:
    """Prune, distil and write a Hugging Face folder with speculative.json; stopped at any moment, it continues."""
    recipe, place = Design(**given(Design, options)), Place(work or out.with_name(out.name + ".work"), out)
    models = load(options["target"], None, "float32", "cpu", "dense")
    make_draft(models, stream_of(models, options["texts"]), place, recipe, speculative(out, k))
    click.echo(f'done: {out}; serve it with vllm serve TARGET --speculative-config "$(cat {out / "speculative.json"})"')


@command.command("rank")
@click.option("--draft", default="reference", show_default=True, help="A shipped draft or a checkpoint folder.")
@click.option("--head", type=click.Choice(RANKED), default=RANKED[0], show_default=True, help="Head that takes the ranking.")
@click.option("--out", type=At(), required=True, help="A new folder: the draft with its ranking; weights are hard links.")
@TEXT
def rank(draft: str, head: str, out: Path, texts: tuple[Path, ...]) -> None:
    """Count the ids of a text and write a copy of the draft with their ranking; for vocab_trim, give what the target wrote."""
    folder = folder_of(draft, "draft")
    with fresh_folder(out, [folder]) as part:
        models = load(folder, None, "float32", "cpu", "dense")
        weight = models.target.head_weight
        ranked = ranked_by_frequency(torch.from_numpy(stream_of(models, texts).astype(np.int64)), len(weight))
        copy_checkpoint(folder, part)
        ShortlistHead.build(weight, ranked).save(part / file_of(head))
        sign(part, file_of(head))
    click.echo(f"done: {out}; decode with --draft-model {out} --head {head}")


@command.command("family")
@click.argument("names", nargs=-1)
@click.option("--folder", type=At(), default=Path("runs/family"), show_default=True, help="Where to work.")
@TARGET
@TEXT
def family(names: tuple[str, ...], folder: Path, target: str, texts: tuple[Path, ...]) -> None:
    """Build the points NAMES of the draft family, or all of them; finished ones are left alone."""
    unknown = [name for name in names if name not in FAMILY]
    if unknown:
        raise ValueError(f"the family has no {unknown[0]!r}; it has: {', '.join(FAMILY)}")
    models = load(target, None, "float32", "cpu", "dense")
    stream = stream_of(models, texts)
    for name in names or FAMILY:
        click.echo(f"done: {build(name, models, stream, folder)}")


@command.command("ship")
@click.argument("point", type=At(exists=True, file_okay=False))
@click.option("--k", type=COUNT, default=4, show_default=True, help="Drafted tokens a check, for speculative.json.")
@click.option("--shelf", type=At(file_okay=False), default=SHIPPED, help="Where shipped models are.")
@TARGET
@TEXT
def ship_point(point: Path, k: int, shelf: Path, target: str, texts: tuple[Path, ...]) -> None:
    """Make the finished folder POINT the shipped draft "designed", with a calibrated FlashHead; once, then it is frozen."""
    models = load(target, point, "float32", "cpu", "dense")
    click.echo(f"done: {ship(point, shelf, stream_of(models, texts), k)}")


@command.command("record")
@click.option("--folder", default=FINISHED, show_default=True, help="Finished points of the family.")
@click.option("--out", type=At(file_okay=False), default=Path("book/results/family"), show_default=True)
@click.option("--prompts", type=At(exists=True, dir_okay=False), help="A prompts file instead of the shipped one.")
@click.option("--new-tokens", type=COUNT, default=64, show_default=True, help="Tokens that the target writes for each prompt.")
@TARGET
def record_points(folder: str, out: Path, prompts: str | None, new_tokens: int, target: str) -> None:
    """Keep recipe, digests, curve and greedy proposals of every finished point below FOLDER, without its weights."""
    points = finished(folder)
    if not points:
        raise FileNotFoundError(f"no finished point below {folder}; build the family with `flashspec draft family`")
    for point in points.values():
        check_free(out / point.name, [point], PROPOSALS)
    alone = load(target, None, "float32", "cpu", "dense")
    trace = record(alone, load_prompts(prompts, 2, alone), GREEDY, new_tokens)
    for point in points.values():
        click.echo(f"done: {record_point(point, folder_of(target, 'target'), trace, out)}")


@command.command("variants")
@click.option("--folder", type=At(file_okay=False), default=Path("runs/variants"), show_default=True, help="Where they go.")
@click.option("--steps", type=COUNT, default=100, show_default=True, help="Training steps of each.")
@TARGET
@TEXT
def variants(folder: Path, steps: int, target: str, texts: tuple[Path, ...]) -> None:
    """Make the other targets of the study: TARGET tuned on docstrings, and its shape trained from another seed."""
    models = load(target, None, "float32", "cpu", "dense")
    for name in VARIANTS:
        click.echo(f"done: {variant(name, models, texts_of(texts), folder, steps)}")


def stream_of(models: Models, texts: tuple[Path, ...]) -> np.ndarray:
    """The given texts, or the training files of the standard library, as one stream of the target's ids."""
    return encoded(models.tokenizer, texts_of(texts))


def texts_of(paths: tuple[Path, ...]) -> list[str]:
    """The given texts, or the training files of the standard library."""
    return [corpus.read(path) for path in paths] or list(corpus.texts(corpus.split(corpus.library_root())[0]))

"""`flashspec heads`: build a FlashHead for a model from text that the model itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from flashspec.cli.flags import COUNT, PROMPTS, At, busy, option
from flashspec.decoding.models import folder_of, load
from flashspec.heads.base import FILE, kept
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.registry import Origin, is_public
from flashspec.measure.prompts import load_prompts
from flashspec.measure.queries import Domain, agreements, domains
from flashspec.models.chat import chat_of
from flashspec.models.writing import check_free, copy_checkpoint, fresh_folder, sign
from flashspec.sampling import Sampling

SHARES = (0.08, 0.1, 0.13)  # of the vocabulary's rows, read at most


@click.group("heads")
def command() -> None:
    """Build approximate vocabulary heads once; every later process finds them."""


@command.command("build")
@click.argument("model")
@PROMPTS
@option("--new-tokens", type=COUNT, default=256, help="Tokens that the model writes after each prompt.")
@option("--temperature", type=click.FloatRange(min=0), default=0.7, help="Temperature of the model's texts; 0 is greedy.")
@option("--out", type=At(), help="A new folder for the model with its head, instead of the cache; weights are hard links.")
def build(model: str, prompts: Path | None, new_tokens: int, temperature: float, out: Path | None) -> None:
    """Build a FlashHead for MODEL (any name that --draft takes), from prompts of several kinds that the model continues.

    The report says how often the head agrees with the dense head on held-out text, one line per kind; the last kind is held out
    completely.
    """
    busy("loading the model")
    models = load(folder_of(model, "draft"), None)
    origin = models.origin("target", "flash")
    place, weight, norm = free_place(origin, models.folders["target"], out), origin.weight, origin.norm
    instructed = chat_of(models.folders["target"])[0]
    asked = load_prompts(prompts or ("instructions" if instructed else None), None, models)
    found = domains(models, asked, asked[-1].kind, new_tokens, Sampling(temperature, seed=0))
    head = FlashHead.build(weight, norm, queries=torch.cat([domain.seen for domain in found.values()]))
    told = {str(share): agreements(head.within(share), DenseHead(norm, weight), found) for share in SHARES}
    keep(head.within(SHARES[1]), {"agreement": told}, place, models.folders["target"] if out else None)
    click.echo(report(head, told, found))
    click.echo(f"done: {place}; decode with --method flash" + (f" --draft {out}" if out else ""))


def free_place(origin: Origin, folder: Path, out: Path | None) -> Path:
    """Where a model's head is written: its file in the cache, or the folder `out`."""
    if out is not None:
        if folder.is_file():
            raise ValueError(f"--out copies a checkpoint folder, and {folder.name} is one file; leave --out away for the cache")
        check_free(out, [folder])
        return out
    if origin.stored("flash") or is_public(folder):
        raise ValueError(f"{folder.name} holds a FlashHead of its own, which is found first; give --out for a copy with another")
    if (place := kept(origin.weight, origin.norm)) is None:
        raise FileNotFoundError("there is no home folder to keep heads in; give --out FOLDER")
    return place


def keep(head: FlashHead, told: dict[str, Any], place: Path, source: Path | None) -> None:
    """Write a head to its file in the cache, or to a new folder with the rest of its model's `source`."""
    if source is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        head.save(place, told)
        return
    with fresh_folder(place, [source]) as part:
        copy_checkpoint(source, part)
        head.save(part / FILE, told)
        sign(part, FILE)


def report(head: FlashHead, told: dict[str, dict[str, float]], found: dict[str, Domain]) -> str:
    """Agreement with the dense head on held-out rows, one line per number of probes."""
    names = [kind + ("" if len(domain.seen) else " (unseen)") for kind, domain in found.items()]
    lines = ["probes  rows read  " + "  ".join(names)]
    for share, agreed in told.items():
        own = head.within(float(share))
        rates = (f"{rate:.3f}".ljust(len(name)) for name, rate in zip(names, agreed.values(), strict=True))
        lines.append(f"{own.probes:6}  {own.rows_scored / own.vocab_size:9.1%}  " + "  ".join(rates))
    return "\n".join(lines)

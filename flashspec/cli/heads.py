"""`flashspec heads`: build a FlashHead for a model from what the model itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from flashspec.cli.flags import COUNT, PROMPTS, At, option
from flashspec.decoding.models import Models, folder_of, load
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.storage import FILE, kept
from flashspec.measure.prompts import load_prompts
from flashspec.measure.queries import Domain, agreements, domains
from flashspec.models.chat import chat_of
from flashspec.models.writing import refuse_taken
from flashspec.sampling import Sampling

SHARES = (0.08, 0.1, 0.13)  # of the vocabulary's rows, read at most


@click.group("heads")
def command() -> None:
    """Approximate vocabulary heads, built once for a model and found again by every process."""


@command.command("build")
@click.argument("model")
@PROMPTS
@option("--new-tokens", type=COUNT, default=256, help="Tokens that the model writes behind each prompt.")
@option("--temperature", type=click.FloatRange(min=0), default=0.7, help="Of these texts.")
@option("--unseen", help="A kind of prompt to judge by alone; default: the last kind.")
@option("--out", type=At(), help="A new folder for the head, instead of the cache.")
def build(model: str, prompts: Path | None, out: Path | None, **options: Any) -> None:
    """Let MODEL (as --draft names it) write behind prompts of several kinds, cluster its vocabulary for these rows, and say how
    often the head names the dense head's token on texts that were held out, kind by kind."""
    models = load(folder_of(model, "draft"), None)
    weight, norm, _ = models.origin("target", "flash")
    place = kept(weight, norm) if out is None else out / FILE
    if place is None:
        raise FileNotFoundError("there is no home folder to keep heads in; give --out FOLDER")
    if out is not None:
        refuse_taken(out)
    asked = load_prompts(prompts or default_prompts(models), None, models)
    sampling, unseen = Sampling(options["temperature"], seed=0), options["unseen"] or asked[-1].kind
    found = domains(models, asked, unseen, options["new_tokens"], sampling)
    head = FlashHead.build(weight, norm, queries=torch.cat([domain.seen for domain in found.values()]))
    told = {str(share): agreements(head.within(share), DenseHead(norm, weight), found) for share in SHARES}
    place.parent.mkdir(parents=True, exist_ok=True)
    head.within(SHARES[1]).save(place, {"agreement": told})
    click.echo(report(head, told, found))
    click.echo(f"done: {place}; " + ("copy it into the model's folder" if out else "decode with --method flash"))


def default_prompts(models: Models) -> str:
    """Instructions where the model has a chat template, else the shipped texts."""
    return "instructions" if chat_of(models.folders["target"])[0] else ""


def report(head: FlashHead, told: dict[str, dict[str, float]], found: dict[str, Domain]) -> str:
    """Agreement with the dense head on held-out rows, a line for a number of probes."""
    names = [kind + ("" if len(domain.seen) else " (unseen)") for kind, domain in found.items()]
    lines = ["probes  rows read  " + "  ".join(names)]
    for share, agreed in told.items():
        own = head.within(float(share))
        rates = (f"{rate:.3f}".ljust(len(name)) for name, rate in zip(names, agreed.values(), strict=True))
        lines.append(f"{own.probes:6}  {own.rows_scored / own.vocab_size:9.1%}  " + "  ".join(rates))
    return "\n".join(lines)

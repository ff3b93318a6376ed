"""`flashspec heads`: build a FlashHead for a model from what the model itself writes."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from flashspec.cli.flags import COUNT, PROMPTS, option
from flashspec.decoding.models import folder_of, load
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.public import is_public
from flashspec.heads.registry import Origin
from flashspec.heads.storage import kept
from flashspec.measure.prompts import load_prompts
from flashspec.measure.queries import Domain, agreements, domains
from flashspec.models.chat import chat_of
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
def build(model: str, prompts: Path | None, new_tokens: int, temperature: float) -> None:
    """Let MODEL (as --draft names it) write behind prompts of several kinds, cluster its vocabulary for these rows, and say how
    often the head names the dense head's token on texts that were held out, kind by kind; the last kind is held out whole."""
    models = load(folder_of(model, "draft"), None)
    origin = models.origin("target", "flash")
    place, weight, norm = free_place(origin, models.folders["target"]), origin.weight, origin.norm
    instructed = chat_of(models.folders["target"])[0]
    asked = load_prompts(prompts or ("instructions" if instructed else None), None, models)
    found = domains(models, asked, asked[-1].kind, new_tokens, Sampling(temperature, seed=0))
    head = FlashHead.build(weight, norm, queries=torch.cat([domain.seen for domain in found.values()]))
    told = {str(share): agreements(head.within(share), DenseHead(norm, weight), found) for share in SHARES}
    place.parent.mkdir(parents=True, exist_ok=True)
    head.within(SHARES[1]).save(place, {"agreement": told})
    click.echo(report(head, told, found))
    click.echo(f"done: {place}; decode with --method flash")


def free_place(origin: Origin, folder: Path) -> Path:
    """Where a model's head goes: its file of the cache."""
    if origin.stored("flash") or is_public(folder):
        raise ValueError(f"{folder.name} holds a FlashHead of its own, which is found first; build for a model without one")
    if (place := kept(origin.weight, origin.norm)) is None:
        raise FileNotFoundError("there is no home folder to keep heads in; set XDG_CACHE_HOME to a folder of yours")
    return place


def report(head: FlashHead, told: dict[str, dict[str, float]], found: dict[str, Domain]) -> str:
    """Agreement with the dense head on held-out rows, a line for a number of probes."""
    names = [kind + ("" if len(domain.seen) else " (unseen)") for kind, domain in found.items()]
    lines = ["probes  rows read  " + "  ".join(names)]
    for share, agreed in told.items():
        own = head.within(float(share))
        rates = (f"{rate:.3f}".ljust(len(name)) for name, rate in zip(names, agreed.values(), strict=True))
        lines.append(f"{own.probes:6}  {own.rows_scored / own.vocab_size:9.1%}  " + "  ".join(rates))
    return "\n".join(lines)

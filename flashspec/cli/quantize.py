"""`flashspec quantize`: a dense checkpoint in 4 bits, as a folder that flashspec, vLLM and transformers load."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from flashspec.cli.flags import COUNT, At, option
from flashspec.train import corpus
from flashspec.train.quantize import quantize_awq

FILES = 64  # of the standard library that calibrate where no text is given


@click.command("quantize")
@click.argument("source", type=At())
@click.argument("target", type=At())
@option("--text", "texts", multiple=True, type=At(), help="Calibration text; may be repeated.")
@option("--group-size", default=128, help="Weights that share a scale: 32, 64 or 128.")
@option("--blocks", type=COUNT, default=16, help="Calibration blocks of 512 tokens.")
def command(source: Path, target: Path, texts: tuple[Path, ...], group_size: int, blocks: int) -> None:
    """Quantise the dense checkpoint in SOURCE to 4 bits and write it to TARGET.

    Without --text, files of the Python standard library calibrate the search; text like what you will decode serves better.
    """
    calibration = corpus.sources(texts) if texts else list(islice(corpus.library(0), FILES))
    quantize_awq(source, target, calibration, group_size, blocks)
    click.echo(f"done: {target}")

"""`flashspec quantize`: a dense checkpoint in 4 bits, as a folder that flashspec, vLLM and transformers load."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.cli.flags import COUNT, At
from flashspec.train import corpus
from flashspec.train.quantize import quantize_awq, quantize_gptq

FILES = 64


@click.command("quantize")
@click.argument("source", type=At())
@click.argument("target", type=At())
@click.option("--text", "texts", multiple=True, type=At(), help="Calibration text; may be repeated.")
@click.option("--group-size", default=128, show_default=True, help="Weights that share a scale: 32, 64 or 128.")
@click.option("--blocks", type=COUNT, default=16, show_default=True, help="Calibration blocks of 512 tokens.")
@click.option(
    "--by",
    type=click.Choice(("autoawq", "llm-compressor")),
    default="autoawq",
    show_default=True,
    help="autoawq (archived) writes AWQ; llm-compressor writes compressed-tensors, which load through transformers.",
)
def command(source: Path, target: Path, texts: tuple[Path, ...], by: str, **plan: int) -> None:
    """Quantise the dense checkpoint in SOURCE to 4 bits and write it to TARGET.

    Without --text, files of the Python standard library calibrate the search; text like what you will decode serves better.
    """
    quantise = {"autoawq": quantize_awq, "llm-compressor": quantize_gptq}[by]
    quantise(source, target, calibration(texts), plan["group_size"], plan["blocks"])
    click.echo(f"done: {target}")


def calibration(given: tuple[Path, ...]) -> list[str]:
    """The given texts, or some of the standard library's."""
    if given:
        return [corpus.read(path) for path in given]
    files = corpus.split(corpus.library_root())[0]
    return list(corpus.texts(files[:: max(1, len(files) // FILES)]))

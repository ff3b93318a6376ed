"""`flashspec quantize`: a dense checkpoint in 4 bits, as a folder that flashspec, vLLM and transformers load."""

from __future__ import annotations

from pathlib import Path

import click

from flashspec.train import corpus
from flashspec.train.quantize import quantize_awq, quantize_gptq

FILES = 64


@click.command("quantize")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, type=click.Path(path_type=Path), help="Calibration text; may be repeated.")
@click.option("--group-size", default=128, show_default=True, help="Weights that share a scale: 32, 64 or 128.")
@click.option("--blocks", default=16, show_default=True, help="Calibration blocks of 512 tokens; time grows with them.")
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
    if (target / "config.json").exists():
        raise FileExistsError(f"{target} holds a checkpoint already; give another folder")
    quantise = {"autoawq": quantize_awq, "llm-compressor": quantize_gptq}[by]
    quantise(source, target, list(corpus.texts(calibration_files(texts))), plan["group_size"], plan["blocks"])
    click.echo(f"done: {target}")


def calibration_files(given: tuple[Path, ...]) -> list[Path]:
    """The given files, or some of the standard library's; FileNotFoundError for one that is not there."""
    missing = [path for path in given if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no calibration text at {missing[0]}; give files of plain text")
    files = corpus.split(corpus.library_root())[0]
    return list(given) or files[:: max(1, len(files) // FILES)]

"""`flashspec doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import click
import torch

from flashspec import provenance
from flashspec.decoding.models import REFERENCE, SHIPPED
from flashspec.kernels.build import built, cache_folder, compiler, identity
from flashspec.models.folder import PAIRS, first_line, published, read_config, verify_digests

PACKAGES = {
    "tokenizers": ("text prompts", "pip install tokenizers"),
    "faiss": ("faster clustering of FlashHeads", "pip install 'flashspec[ann]', or [gpu] on CUDA"),
    "transformers": ("comparison with other engines", "pip install 'flashspec[peers]'"),
    "awq": ("quantising to 4 bits", "pip install 'flashspec[quantize]'"),
    "papermill": ("running notebooks", "pip install 'flashspec[book]'"),
    "jupyter_book": ("building the book", "pip install 'flashspec[book]'"),
}
Finding = tuple[str, bool, str, str]  # what, whether it is there, what was found, how to get it


def machine() -> Iterator[Finding]:
    """Processor, bfloat16 instructions, threads, GPU and optional libraries."""
    box, fast = provenance.machine(), provenance.bf16_instructions()
    yield "processor", True, f"{box['cpu']}, {box['cores']} cores, {box['isa']}, {box['memory_gib']} GiB", ""
    bf16 = f"in hardware ({', '.join(fast)})" if fast else "converted in software; saves memory traffic, not arithmetic"
    yield "bfloat16", bool(fast), bf16, "a processor with AVX512-BF16 or AMX"
    threads = torch.get_num_threads()
    yield "threads", threads <= box["cores"], f"{threads} of {box['cores']} cores", f"OMP_NUM_THREADS={box['cores']}"
    seen = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if seen else "none: everything runs on the CPU"
    yield "GPU", seen, name, "a CUDA device and a CUDA build of torch"
    for package, (purpose, fix) in PACKAGES.items():
        yield package, importlib.util.find_spec(package) is not None, f"for {purpose}", fix


def compilation() -> Iterator[Finding]:
    """The C compiler, the compiled kernels, and whether the next process will find them again."""
    cc, made = compiler(), built()
    yield "C compiler", cc is not None, cc or "none: slower torch kernels serve", "install gcc or clang"
    if made.library is None:
        fix = made.fix or "install gcc or clang, and leave FLASHSPEC_KERNELS unset"
        yield "kernels", False, made.trouble or "not compiled: slower torch kernels serve", fix
    else:
        yield "kernels", True, f"C {identity()['source']}, compiled by {made.compiler or cc}", ""
        yield "kernel cache", not made.trouble, made.trouble or str(cache_folder()), made.fix


def models() -> Iterator[Finding]:
    """Shipped models, whether they are there and undamaged, and published ones, where their files are."""
    for folder in sorted({folder for names in REFERENCE.values() for folder in names.values()}):
        try:
            read_config(SHIPPED / folder)
            verify_digests(SHIPPED / folder)
            yield f"model {folder}", True, "whole, digests match", ""
        except (FileNotFoundError, ValueError) as error:
            yield f"model {folder}", False, first_line(error), "make models, or clone the repository again"
    for name, role in ((name, role) for name, pair in PAIRS.items() for role in pair):
        try:
            yield f"{name} {role}", True, f"{published(name, role)}, digest matches", ""
        except (FileNotFoundError, ValueError) as error:
            yield f"{name} {role}", False, str(error).partition(";")[0], f"flashspec fetch {name}"


def line(finding: Finding) -> str:
    """One finding as a line of the report."""
    subject, present, found, fix = finding
    mark = click.style("yes", fg="green") if present else click.style("no ", fg="yellow")
    return f"{mark}  {subject:<16}{found}" + (f"  (to get it: {fix})" if fix and not present else "")


@click.command("doctor")
def command() -> None:
    """Show what this machine can do, what is missing and how to get it."""
    click.echo(", ".join(f"{name} {version}" for name, version in provenance.versions().items()))
    for finding in (*machine(), *compilation(), *models()):
        click.echo(line(finding))

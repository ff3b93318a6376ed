"""`flashspec doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import click
import torch

from flashspec import provenance
from flashspec.decoding.models import REFERENCE, SHIPPED
from flashspec.kernels.build import built, cache_folder, compiler, identity
from flashspec.models.folder import verify_digests

PACKAGES = {
    "tokenizers": ("text prompts", "pip install tokenizers"),
    "faiss": ("faster clustering of FlashHeads", "pip install 'flashspec[ann]', or [gpu] on CUDA"),
    "transformers": ("comparison with other engines", "pip install 'flashspec[peers]'"),
    "awq": ("quantising to 4 bits", "pip install 'flashspec[quantize]'"),
    "papermill": ("running notebooks", "pip install 'flashspec[book]'"),
    "jupyter_book": ("building the book", "pip install 'flashspec[book]'"),
}


class Finding(NamedTuple):
    """One line of the report; `fix` says how to get what is missing, `needed` that nothing works without it."""

    subject: str
    present: bool
    found: str
    fix: str = ""
    needed: bool = False


def findings() -> Iterator[Finding]:
    """Everything the doctor looks at, from the machine to the models."""
    yield from machine()
    yield from gpu()
    yield from packages()
    yield from models()


def machine() -> Iterator[Finding]:
    """Processor, bfloat16 instructions, threads and compiler."""
    box, fast = provenance.machine(), provenance.cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}
    yield Finding("processor", True, f"{box['cpu']}, {box['cores']} cores, {box['isa']}, {box['memory_gib']} GiB")
    bf16 = f"in hardware ({', '.join(sorted(fast))})" if fast else "converted in software; saves memory traffic, not arithmetic"
    yield Finding("bfloat16", bool(fast), bf16, "a processor with AVX512-BF16 or AMX")
    threads = torch.get_num_threads()
    yield Finding("threads", threads <= box["cores"], f"{threads} of {box['cores']} cores", f"OMP_NUM_THREADS={box['cores']}")
    yield from compilation()


def compilation() -> Iterator[Finding]:
    """The C compiler, what it made of the kernels, and whether the next process finds that again."""
    cc, made = compiler(), built()
    yield Finding("C compiler", cc is not None, cc or "none: slower torch kernels serve", "install gcc or clang")
    if made.library is None:
        fix = made.fix or "install gcc or clang, and leave FLASHSPEC_KERNELS unset"
        yield Finding("kernels", False, made.trouble or "not compiled: slower torch kernels serve", fix)
    else:
        yield Finding("kernels", True, f"C {identity()['source']}, compiled by {made.compiler or cc}")
        yield Finding("kernel cache", not made.trouble, made.trouble or str(cache_folder()), made.fix)


def gpu() -> Iterator[Finding]:
    """CUDA device and Triton."""
    seen = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if seen else "none: everything runs on the CPU"
    yield Finding("GPU", seen, name, "a CUDA device and a CUDA build of torch")
    yield _package("triton", "fused GPU kernels", "comes with CUDA builds of torch")


def packages() -> Iterator[Finding]:
    """Optional libraries and what each is for."""
    for name, (purpose, fix) in PACKAGES.items():
        yield _package(name, purpose, fix)


def models() -> Iterator[Finding]:
    """Shipped models, whole and undamaged."""
    for folder in sorted({folder for names in REFERENCE.values() for folder in names.values()}):
        path = SHIPPED / folder
        try:
            present = (path / "config.json").is_file()
            verify_digests(path)
            found = "whole, digests match" if present else "missing"
        except (FileNotFoundError, ValueError) as error:
            present, found = False, str(error).partition(";")[0]
        yield Finding(f"model {folder}", present, found, "make models, or clone the repository again")


def line(finding: Finding) -> str:
    """A finding as one line of the report."""
    mark = click.style("yes", fg="green") if finding.present else click.style("no ", fg="yellow")
    fix = f"  (to get it: {finding.fix})" if not finding.present and finding.fix else ""
    return f"{mark}  {finding.subject:<16}{finding.found}{fix}"


def _package(name: str, purpose: str, fix: str) -> Finding:
    present = importlib.util.find_spec(name) is not None
    return Finding(name, present, f"for {purpose}", fix)


@click.command("doctor")
def command() -> None:
    """Say what this machine can do, what is missing and how to get it."""
    versions = provenance.versions()
    click.echo(", ".join(f"{name} {version}" for name, version in versions.items()))
    for finding in findings():
        click.echo(line(finding))

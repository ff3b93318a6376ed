"""Weights lie behind one another on huge pages; structures are what the C compiler makes of them."""

import ctypes
import mmap
import re
import subprocess

import pytest
import torch

from flashspec import load
from flashspec.kernels import build
from flashspec.kernels.integers import BLOCK, Shelf

HUGE = hasattr(mmap, "MADV_HUGEPAGE")
needs_huge = pytest.mark.skipif(not HUGE, reason="this system has no madvise(MADV_HUGEPAGE)")


class Noting(mmap.mmap):
    asked, refuses = [], False

    def madvise(self, advice):
        self.asked.append((torch.frombuffer(self, dtype=torch.uint8, count=1).data_ptr(), len(self), advice))
        if self.refuses:
            raise OSError(22, "Invalid argument")


@needs_huge
def test_loaded_weights_lie_where_huge_pages_are_asked_for(monkeypatch):
    monkeypatch.setattr(mmap, "mmap", Noting)
    model = load(draft=None).target
    large = [tensor for tensor in (*model.parameters(), *model.buffers(), torch.ones(BLOCK)) if tensor.nbytes > 1 << 18]
    lie = [any(0 <= t.data_ptr() - at < size for at, size, _ in Noting.asked) for t in large]
    assert lie == [True] * (len(large) - 1) + [False]  # the control: an ordinary tensor
    assert {advice for *_, advice in Noting.asked} == {mmap.MADV_HUGEPAGE}


@pytest.mark.parametrize("without", ["the request", pytest.param("the kernel's consent", marks=needs_huge)])
def test_without_huge_pages_tensors_lie_in_ordinary_memory(monkeypatch, without):
    if without == "the request":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "mmap", Noting)
        monkeypatch.setattr(Noting, "refuses", True)
    shelf, elsewhere = Shelf(), torch.empty(3, device="meta")
    assert torch.equal(shelf.moved(torch.arange(5)), torch.arange(5))
    assert shelf.zeros((0, 3), torch.float32).shape == (0, 3)
    assert shelf.moved(elsewhere) is elsewhere and shelf.zeros((2,), torch.int8, "meta").device.type == "meta"


STRUCTURES = [name for path in build.SOURCES for _, name in build.STRUCTURE.findall(path.read_text())]
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C compiler")


def by_ctypes():
    """The place and size of every field of every structure, and the size of each structure."""
    kinds = {name: build.structure(name) for name in STRUCTURES}
    sizes = {(name, ""): (0, ctypes.sizeof(kind)) for name, kind in kinds.items()}
    fields = [(name, field, getattr(kind, field)) for name, kind in kinds.items() for field, *_ in kind._fields_]
    return sizes | {(name, field): (place.offset, place.size) for name, field, place in fields}


def compiled(folder, change):
    """The same numbers by the compiler, for the source with one text changed into another."""
    for path in build.SOURCES:
        (folder / path.name).write_text(path.read_text().replace(*change))
    places = list(by_ctypes())
    lines = ['#include "cpu.c"', "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for name, field in places:
        told = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})" if field else f"(size_t)0, sizeof({name})"
        lines.append(f'printf("%zu %zu\\n", {told});')
    (folder / "main.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([build.compiler(), "-w", "-fopenmp", "-o", "main", "main.c", "-lm"], cwd=folder, check=True)
    said = subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {place: tuple(map(int, line.split())) for place, line in zip(places, said, strict=True)}


@needs_compiler
@pytest.mark.parametrize("change", [
    ("", ""),
    ("    Norm norm;\n    double eps;\n", "    double eps;\n    Norm norm;\n"),
    ("int64_t seen, start, want;", "int32_t seen, start, want;"),
    ("float most, whole;", "float most, whole, spare[2];"),
], ids=["ours", "order", "width", "size"])  # fmt: skip
def test_every_field_lies_where_the_compiler_puts_it_and_a_header_that_says_otherwise_is_caught(tmp_path, change):
    assert {"Matrix", "Norm", "Shape", "Layer", "Head", "Law", "Writer", "Burst", "Row"} <= set(STRUCTURES)
    assert (by_ctypes() == compiled(tmp_path, change)) == (not any(change))


@needs_compiler
def test_every_function_is_called_with_what_it_takes():
    library = build.library()
    if library is None:
        pytest.skip("torch computes here")
    taken = {name: given.count(",") + 1 for _, name, given in build.FUNCTION.findall(build.SOURCE.read_text())}
    assert len(taken) == len([line for line in build.SOURCE.read_text().splitlines() if re.match(r"\w.* fs_\w+\(", line)])
    assert {name: len(getattr(library, name).argtypes) for name in taken} == taken
    assert library.fs_bursting.restype is ctypes.c_int64 and library.fs_norm.restype is None
    with pytest.raises(ctypes.ArgumentError):
        library.fs_norm(None, 1.5, None, None, 1e-6, 8, None)
    with pytest.raises(TypeError):
        library.fs_norm(None, 1)

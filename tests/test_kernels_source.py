"""Structures and functions as ctypes calls them are what the C compiler makes of the source."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest

from flashspec.kernels import build, source

STRUCTURES = [name for path in source.SOURCES for _, name in source.STRUCTURE.findall(path.read_text())]
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C compiler")


def leaves(kind: type[ctypes.Structure], at: str = "", start: int = 0) -> dict[str, list[int]]:
    """Offset and size of every plain field by its path."""
    found: dict[str, list[int]] = {}
    for name, inner in kind._fields_:
        place, path = getattr(kind, name), at + name
        if issubclass(inner, ctypes.Structure):
            found |= leaves(inner, f"{path}.", start + place.offset)
        else:
            found[path] = [start + place.offset, place.size]
    return found


def compiled(folder, change=("", "")) -> dict[str, dict[str, list[int]]]:
    """What the compiler says of every structure, for the source with one text changed into another."""
    for path in source.SOURCES:
        (folder / path.name).write_text(path.read_text().replace(*change))
    lines = ['#include "cpu.c"', "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for name in STRUCTURES:
        lines += [
            f'printf("{name} {path} %zu %zu\\n", offsetof({name}, {path}), sizeof((({name} *)0)->{path}));'
            for path in leaves(source.structure(name))
        ]
        lines.append(f'printf("{name} sizeof 0 %zu\\n", sizeof({name}));')
    (folder / "main.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([build.compiler(), "-w", "-o", "main", "main.c", "-lm"], cwd=folder, check=True)
    found: dict[str, dict[str, list[int]]] = {name: {} for name in STRUCTURES}
    for line in subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout.splitlines():
        name, path, *numbers = line.split()
        found[name][path] = [int(number) for number in numbers]
    return found


def by_ctypes() -> dict[str, dict[str, list[int]]]:
    kinds = {name: source.structure(name) for name in STRUCTURES}
    return {name: {**leaves(kind), "sizeof": [0, ctypes.sizeof(kind)]} for name, kind in kinds.items()}


def test_every_field_lies_where_the_compiler_puts_it(tmp_path):
    assert {"Matrix", "Norm", "Shape", "Layer", "Head", "Law", "Writer", "Burst", "Row"} <= set(STRUCTURES)
    assert by_ctypes() == compiled(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        ("    Norm norm;\n    double eps;\n", "    double eps;\n    Norm norm;\n"),
        ("int64_t seen, start, want;", "int32_t seen, start, want;"),
        ("float most, whole;", "float most, whole, spare[2];"),
    ],
    ids=["order", "width", "size"],
)
def test_the_control_a_header_that_says_otherwise_is_caught(tmp_path, change):
    assert by_ctypes() != compiled(tmp_path, change)


def test_every_function_is_called_with_as_many_numbers_and_addresses_as_it_takes():
    library = build.library()
    if library is None:
        pytest.skip("torch computes here")
    taken = {name: given.count(",") + 1 for _, name, given in source.FUNCTION.findall(source.SOURCE.read_text())}
    assert len(taken) == len([line for line in source.SOURCE.read_text().splitlines() if re.match(r"\w.* fs_\w+\(", line)])
    assert {name: len(getattr(library, name).argtypes) for name in taken} == taken
    assert library.fs_bursting.restype is ctypes.c_int64 and library.fs_norm.restype is None
    with pytest.raises(ctypes.ArgumentError):
        library.fs_norm(None, 1.5, None, None, 1e-6, 8, None)
    with pytest.raises(TypeError):
        library.fs_norm(None, 1)

"""What the C source declares, as ctypes calls it, read from the source itself."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).absolute().with_name("cpu.c")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
NUMBERS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float}
STRUCTURE = re.compile(r"typedef struct \{(.*?)\} (\w+);", re.DOTALL)
FUNCTION = re.compile(r"^(void|int64_t) (fs_\w+)\((.*)\) \{", re.MULTILINE)


@functools.cache
def structure(name: str) -> type[ctypes.Structure]:
    """A structure of the headers, its fields by their names there."""
    bodies = {found[2]: found[1] for path in SOURCES for found in STRUCTURE.finditer(path.read_text())}
    return type(name, (ctypes.Structure,), {"_fields_": _declared(bodies[name])})


def _declared(text: str) -> list[tuple[str, Any]]:
    """Names and types in declarations like `const float *a, *b; int64_t c;`."""
    found: list[tuple[str, Any]] = []
    for declaration in filter(None, map(str.strip, text.split(";"))):
        kind, _, names = declaration.removeprefix("const ").partition(" ")
        for name in names.split(", "):
            pointed = name.startswith("*")
            found.append((name.lstrip("*"), ctypes.c_void_p if pointed else NUMBERS.get(kind) or structure(kind)))
    return found


def with_signatures(library: ctypes.CDLL) -> ctypes.CDLL:
    """A compiled library whose functions know what they take and give back."""
    for result, name, given in FUNCTION.findall(SOURCE.read_text()):
        function = getattr(library, name)
        function.restype = NUMBERS.get(result)
        function.argtypes = [kind for _, kind in _declared(given.replace(", ", ";"))]
    return library

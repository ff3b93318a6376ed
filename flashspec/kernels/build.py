"""Compile the C kernels once for this machine, with the C compiler it has, and load only libraries of one's own.

They are kept in a folder that only the user may open, under a name with a digest of their bytes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from flashspec.once import Once
from flashspec.provenance import cpu_flags, cpu_name

SOURCE = Path(__file__).absolute().with_name("cpu.c")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
NUMBERS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float}
STRUCTURE = re.compile(r"typedef struct \{(.*?)\} (\w+);", re.DOTALL)
FUNCTION = re.compile(r"^(void|int64_t) (fs_\w+)\((.*)\) \{", re.MULTILINE)
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
ISAS = ("avx512vnni", "avxvnni", "avx2", "generic", "amx")  # of integer products, as the source counts them
FASTEST, IN_USE = -1, -2
LINES = 5  # of a compiler's complaint


class Build(NamedTuple):
    """The kernels of this process, their compiler's version, what went wrong, and what to do about it."""

    library: ctypes.CDLL | None = None
    compiler: str = ""
    trouble: str = ""
    fix: str = ""


def compiler() -> str | None:
    """This machine's C compiler: $CC, cc, gcc or clang; None without one, or off POSIX."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang") if os.name == "posix" else ()
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path | None:
    """The user's cache, below $XDG_CACHE_HOME if that is absolute, or ~/.cache; None for a user without a home."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not named.is_absolute():
        with suppress(RuntimeError):
            named = Path.home() / ".cache"
    return named / "flashspec" if named.is_absolute() else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, None where torch computes; the reason is a warning, once per process."""
    found = built()
    if found.trouble:
        warnings.warn(f"{found.trouble}; {found.fix}", RuntimeWarning, stacklevel=2)
    return found.library


_BUILT: Once[str, Build] = Once()


def built() -> Build:
    """Where this process got its kernels from, or why it has none."""
    return _BUILT.made("cpu", _build)


def identity() -> dict[str, str]:
    """Which kernels compute here: digest of their source, compiler version and flags, or torch."""
    found = built()
    if found.library is None:
        return {"kernels": "torch"}
    facts = {"source": _source(), "compiler": found.compiler, "flags": " ".join(FLAGS)}
    return {"kernels": "C", **facts, "isa": ISAS[found.library.fs_isa(IN_USE)]}


def _build() -> Build:
    cc = compiler()
    if cc is None or os.environ.get("FLASHSPEC_KERNELS") == "0":
        return Build()
    version = ""
    with suppress(OSError):
        said = subprocess.run([cc, "--version"], capture_output=True, text=True, errors="replace").stdout
        version = said.partition("\n")[0]
    try:
        return Build(_library_in(cache_folder(), cc, version), version)
    except OSError as error:
        unkept = f"compiled kernels cannot be kept for the next process, so that each compiles its own: {error}"
    try:
        with tempfile.TemporaryDirectory(prefix="flashspec-") as place:  # gone once its library is loaded
            found = _library_in(Path(place), cc, version)
        return Build(found, version, unkept, "give XDG_CACHE_HOME the absolute path of a folder of your own")
    except OSError as error:
        trouble = f"the kernels could not be compiled, and slower torch kernels serve: {error}"
        return Build(None, version, trouble, "name another compiler in CC, or set FLASHSPEC_KERNELS=0 to do without one")


def use_isa(loaded: ctypes.CDLL, name: str) -> str:
    """Compute integer products with this instruction set, or the fastest for ""; returns the one in use.

    All of them give the same bits. Raises ValueError for a set that this processor does not have.
    """
    chosen = loaded.fs_isa(FASTEST if not name else ISAS.index(name) if name in ISAS else len(ISAS))
    if chosen < 0:
        has = ", ".join(known for i, known in enumerate(ISAS) if loaded.fs_isa(i) >= 0)
        raise ValueError(f"FLASHSPEC_ISA={name} is no instruction set of this machine; it has {has}")
    return ISAS[chosen]


def _source() -> str:
    return _digest(*(path.read_bytes() for path in SOURCES))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _library_in(cache: Path | None, cc: str, version: str) -> ctypes.CDLL:
    """The library in a folder, compiled if it is missing: by one process, while the others wait."""
    import fcntl

    facts = (_source(), *FLAGS, cc, version, platform.machine(), cpu_name(), *sorted(cpu_flags()))
    name = f"cpu-{_digest(*(fact.encode() for fact in facts))}"
    place = _ours_alone(cache)
    found = _kept(place, name)
    if found is None:
        with open(place / "lock", "ab", opener=_opened) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _kept(place, name) or _fresh(place, name, cc)
    ready = with_signatures(found)
    use_isa(ready, os.environ.get("FLASHSPEC_ISA", ""))
    return ready


def _ours_alone(place: Path | None) -> Path:
    """A folder closed to others; PermissionError if it or the link to it belongs to someone else."""
    if place is None:
        raise FileNotFoundError("this user has no home folder")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if {place.lstat().st_uid, place.stat().st_uid} != {os.geteuid()}:
        raise PermissionError(f"{place} belongs to another user")
    if stat.S_IMODE(place.stat().st_mode) != 0o700:
        place.chmod(0o700)
    if not _ours(place.stat()):
        raise PermissionError(f"{place} can be written by other users")
    return place


def _ours(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def _opened(path: str, flags: int) -> int:
    """Opens no link, and never waits on a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _kept(folder: Path, name: str) -> ctypes.CDLL | None:
    for path in sorted(folder.glob(f"{name}-*.so")):
        with suppress(OSError), open(path, "rb", opener=_opened) as file:
            facts = os.fstat(file.fileno())
            if stat.S_ISREG(facts.st_mode) and _ours(facts) and path.name == _named(name, file.read()):
                return ctypes.CDLL(str(path))
    return None


def _named(name: str, code: bytes) -> str:
    return f"{name}-{hashlib.sha256(code).hexdigest()[:32]}.so"


def _fresh(folder: Path, name: str, cc: str) -> ctypes.CDLL:
    for left in folder.glob("building-*"):  # of a killed compilation
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as place:
        part, command = Path(place) / "cpu.so", [cc, *FLAGS, "-o", "cpu.so", str(SOURCE), "-lm"]
        there = os.environ | {"TMPDIR": "."}
        try:
            done = subprocess.run(command, cwd=place, env=there, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise OSError(f"{cc} does not start: {error.strerror}") from None
        if done.returncode:
            ended = f"exit status {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
            said = [line.rstrip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise OSError("\n  ".join([f"{cc}, {ended}", *said[:LINES]]))
        part.chmod(0o600)
        loaded = ctypes.CDLL(str(part))
        part.replace(folder / _named(name, part.read_bytes()))
    return loaded


@functools.cache
def structure(name: str) -> type[ctypes.Structure]:
    """A structure of the headers, with their field names."""
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
    """A compiled library whose functions know their argument and result types."""
    for result, name, given in FUNCTION.findall(SOURCE.read_text()):
        function = getattr(library, name)
        function.restype = NUMBERS.get(result)
        function.argtypes = [kind for _, kind in _declared(given.replace(", ", ";"))]
    return library


def call(function: str, *given: Any) -> Any:
    """Call a compiled function with numbers, structures and tensors; None becomes null."""
    return getattr(library(), function)(*map(address, given))


def address(one: Any) -> Any:
    """The address of a tensor; anything else unchanged."""
    return one.data_ptr() if isinstance(one, Tensor) else one

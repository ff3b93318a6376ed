"""Compile the C kernels once for this machine, with whatever C compiler it has."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

SOURCE = Path(__file__).with_name("cpu.c")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")


def compiler() -> str | None:
    """The C compiler this machine offers: $CC, cc, gcc or clang."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept between processes."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flashspec"


def _key(cc: str) -> str:
    """Names one build: source, flags, compiler and processor."""
    cpu = next((line for line in _cpu_lines() if line.startswith("flags")), platform.processor())
    return hashlib.sha256("\0".join((*(path.read_text() for path in SOURCES), *FLAGS, cc, cpu)).encode()).hexdigest()[:16]


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def _compile(cc: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        subprocess.run([cc, *FLAGS, "-o", str(part), str(SOURCE), "-lm"], check=True, capture_output=True)
        part.replace(target)


def compiled() -> ctypes.CDLL:
    """The compiled kernels of a process that has them."""
    found = library()
    assert found is not None
    return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there is no compiler or FLASHSPEC_KERNELS=0; torch computes everything then."""
    cc = compiler()
    if cc is None or os.environ.get("FLASHSPEC_KERNELS") == "0":
        return None
    target = cache_folder() / f"cpu-{_key(cc)}.so"
    try:
        if not target.exists():
            _compile(cc, target)
        loaded = ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None
    for sized in ("fs_scratch", "fs_scoring", "fs_bursting"):
        getattr(loaded, sized).restype = ctypes.c_int64
    address, count = ctypes.c_void_p, ctypes.c_int64
    loaded.fs_score.argtypes = [address, address, count, address, address, address]
    return loaded


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Addresses of tensors that outlive the call, null for None."""
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def whole(count: int) -> ctypes.c_int64:
    """A whole number as the kernels take it."""
    return ctypes.c_int64(count)

"""Where a number comes from: code, machine, versions and model files, without host names or user paths."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("flashspec", "numpy", "safetensors", "tokenizers", "transformers", "faiss-cpu", "papermill")
RESULTS, MODELS = "FLASHSPEC_RESULTS", "FLASHSPEC_MODELS"  # places, which no origin tells
MODEL_FILES = ("*.safetensors", "config.json", "tokenizer.json")


def origin() -> dict[str, Any]:
    """Code, date, machine, threads, versions and FLASHSPEC variables of this process; a missing fact is None."""
    return {
        **source(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "machine_key": short_hash(machine()),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "variables": {
            name: os.environ[name] for name in sorted(set(os.environ) - {RESULTS, MODELS}) if name.startswith("FLASHSPEC_")
        },
    }


def source() -> dict[str, Any]:
    """This package's commit, whether tracked files differ from it, and a digest of the difference."""
    folder = Path(__file__).resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    changed = _git(folder, "diff", "HEAD", "--", str(folder))
    found = {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}
    return {**found, "diff": short_hash(changed)} if changed else found


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What the clock ran on: processor, usable cores, instruction set, memory in GiB, accelerator."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": memory_gib(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python, flashspec, torch and the optional packages that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes; FileNotFoundError names a missing file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name} to digest: check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of weights, config.json and tokenizer.json of a checkpoint folder, or of a GGUF file, by name."""
    folder = Path(folder)
    found = [folder] if folder.is_file() else sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no model files in {folder.name}: expected config.json and *.safetensors")
    return {path.name: _digest_of(path.resolve(), path.stat().st_mtime_ns, path.stat().st_size) for path in found}


@lru_cache(maxsize=256)
def _digest_of(path: Path, changed: int, size: int) -> str:
    """The digest of a model's file, read once a process for as long as nobody changes the file."""
    return digest(path)


def short_hash(value: Any, length: int = 12) -> str:
    """The first hexadecimal digits of SHA-256 over a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def cpu_name() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> frozenset[str]:
    """Instruction-set names the kernel lists for the first core, empty where it lists none."""
    return frozenset(_cpuinfo("flags", "Features").split())


def bf16_instructions() -> list[str]:
    """The processor's instructions that multiply bfloat16; torch converts where there are none, at half float32's speed."""
    return sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> int | None:
    """Installed memory in whole GiB, None where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)


def describe(facts: Mapping[str, Any]) -> str:
    """One line for a caption from an origin: processor, cores, instruction set, device and day."""
    box = facts["machine"]
    accelerator = "" if box["device"] == "cpu" else f", {box['device']}"
    return f"{box['cpu']}, {box['cores']} cores, {box['isa']}{accelerator}, {facts['date'][:10]}"


def _cpuinfo(*labels: str) -> str:
    """The first value that Linux lists for a processor under one of these labels, "" if there is none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            label, _, value = line.partition(":")
            if label.strip() in labels:
                return value.strip()
    return ""


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

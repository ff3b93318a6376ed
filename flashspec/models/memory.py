"""Where a model is loaded and how much memory it takes, known before loading: dtypes, devices, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from flashspec.models.config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYER_BYTES = 40_000  # modules and parameters, whatever they hold


def dtype_named(name: str) -> torch.dtype:
    """float32 or bfloat16; ValueError for any other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported; use one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def device_named(name: str) -> torch.device:
    """The device of a name, "auto" for CUDA if available; ValueError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not one that torch knows; use auto, cpu or cuda") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise ValueError(f"device {name!r} was asked for and torch sees {seen} CUDA devices; use device='cpu'")
    return place


class Form(NamedTuple):
    """The form of weights in memory: their floating dtype, and the group size of 4-bit layers (0: none)."""

    dtype: torch.dtype
    group: int = 0

    @property
    def body_bytes(self) -> float:
        """Bytes per layer weight, with its share of scales and zero points."""
        return 0.5 + 2 * self.dtype.itemsize / self.group if self.group else self.dtype.itemsize


def weight_bytes(config: ModelConfig, form: Form) -> int:
    """Bytes of the matrices: layers in their form, embedding and head in the floating dtype."""
    ends = config.head_parameters * (1 if config.tied else 2)
    return int(config.body_parameters * form.body_bytes) + ends * form.dtype.itemsize


def needed_bytes(config: ModelConfig, form: Form) -> int:
    """Bytes that loading takes: the matrices, position tables, and torch's own per layer."""
    learned = config.hidden * form.dtype.itemsize if config.opt else 0
    return weight_bytes(config, form) + config.context * (12 * config.head_dim + learned) + config.layers * LAYER_BYTES


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, with what torch keeps for reuse; None where the system does not say."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def refuse_too_large(name: str, config: ModelConfig, form: Form, device: torch.device) -> None:
    """ValueError with an estimate when a model does not fit the free memory of the device."""
    kind = "4 bits" if form.group else str(form.dtype).removeprefix("torch.")
    refuse_bytes(name, needed_bytes(config, form), device, f" in {kind}")


def refuse_bytes(name: str, needed: int, place: torch.device, form: str = "") -> None:
    """ValueError with an estimate when this many bytes do not fit the free memory of the device."""
    free = free_bytes(place)
    if free is None or needed <= free:
        return
    raise ValueError(
        f"{name} needs about {needed / 1e9:.1f} GB of {place.type} memory{form} and {free / 1e9:.1f} GB are free; "
        "take a smaller model, a 4-bit checkpoint with weights='int4', or a machine with more memory"
    )

"""Devices and number types by the names that a user gives, refused in words where there is no such thing."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_named(name: str) -> torch.dtype:
    """float32 or bfloat16; ValueError for any other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported; use one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def device_named(name: str) -> torch.device:
    """The device of a name, "auto" for CUDA where there is one; ValueError for one that this machine does not have."""
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

"""flashspec: what makes speculative decoding fast, and when does it pay?"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.18.0"

_HOMES = {
    "flashspec.sampling": ("Scores", "Sampling", "Dice"),
    "flashspec.models.transformer": ("Transformer",),
    "flashspec.heads.base": ("DenseHead",),
    "flashspec.heads.flash": ("FlashHead",),
    "flashspec.decoding.rules": ("SpeculativeSampling", "GumbelCoupling", "TypicalAcceptance"),
    "flashspec.decoding.stages": ("Stage",),
    "flashspec.decoding.cascade": ("Event", "Limits", "State", "Step", "decode"),
    "flashspec.decoding.method": ("Method", "METHODS", "build"),
    "flashspec.decoding.models": ("Models", "load"),
    "flashspec.decoding.generate": ("Output", "generate", "generate_together"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("theory", "provenance", "study")
__all__ = [*_PUBLIC, *_ROOMS]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"flashspec.{name}")
    raise AttributeError(f"module 'flashspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

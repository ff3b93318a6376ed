"""Checks that formulas and parameters share: an impossible number is refused by name, never computed with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

N = TypeVar("N", int, float)


def _checked(value: N, holds: bool, words: str) -> N:
    if not holds:
        raise ValueError(f"{words}, got {value}")
    return value


def check_share(name: str, value: float) -> float:
    return _checked(value, 0.0 <= value <= 1.0, f"{name} must lie in [0, 1]")


def check_block(block: int) -> int:
    return _checked(block, block >= 1 and block == int(block), "block must be a whole number of at least 1")


def check_latency(name: str, value: float) -> float:
    return _checked(value, 0.0 <= value < math.inf, f"{name} must be finite and at least 0")


def check_positive(name: str, value: float) -> float:
    return _checked(value, value > 0.0, f"{name} must be above 0")


def at_least(params: Any, **least: int) -> None:
    """Refuse a field, or a member of a list field, below its least value, and an empty list."""
    for name, low in least.items():
        value = getattr(params, name)
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not values or min(values) < low:
            raise ValueError(f"{name} must be at least {low}, got {min(values) if values else 'none'}")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a value that is not known."""
    if value not in (choices := tuple(known)):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def among(params: Any, **known: Iterable[str]) -> None:
    """Refuse a field, or a member of a list field, that is not known."""
    for name, choices in known.items():
        value = getattr(params, name)
        for each in value if isinstance(value, (tuple, list)) else (value,):
            one_of(name, each, choices)


def check_smaller(draft: int, target: int) -> None:
    """Refuse a draft whose layers hold more parameters than its target's."""
    if draft > target:
        raise ValueError(
            f"the draft is bigger than its target ({draft:,} and {target:,} body parameters): swap them, or shrink it"
        )

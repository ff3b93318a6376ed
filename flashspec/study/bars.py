"""What was asked of a number, and whether the number meets it, in words: the same sentence for every bar of the study."""

from __future__ import annotations


def at_most(value: float, asked: float, unit: str = " %") -> str:
    """A number that was to be no larger than `asked`, and whether it meets that."""
    return _said(value, asked, unit, value <= asked)


def at_least(value: float, asked: float, unit: str = " %") -> str:
    """A number that was to be no smaller than `asked`, and whether it meets that."""
    return _said(value, asked, unit, value >= asked)


def _said(value: float, asked: float, unit: str, met: bool) -> str:
    return f"{value:.4g}{unit}, {'meets' if met else 'misses'} the {asked:g}{unit} asked for"

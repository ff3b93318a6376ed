"""How much of a text repeats itself, and how much of a draft was kept: the two must be read together."""

from __future__ import annotations

from collections.abc import Sequence


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of the n-grams of a text that already stood earlier in it; 0 where the text has none."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

"""Rank correlation: whether what is better by one number is better by another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flashspec.study.readings import Missing
from flashspec.theory import Interval, bootstrap

FEWEST = 5


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    import pandas

    return pandas.Series(values).rank().to_numpy()


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1]: Pearson's of the ranks; 0 where one side does not vary."""
    if len(x) != len(y):
        raise ValueError(f"a correlation needs pairs, got {len(x)} and {len(y)} values")
    a, b = (ranks(side) - (len(side) + 1) / 2 for side in (x, y))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else 0.0


def rank_correlation(x: Sequence[float], y: Sequence[float], draws: int = 2000) -> Interval:
    """Spearman's rank correlation with a 95 % bootstrap interval over the pairs; Missing for fewer than FEWEST pairs."""
    if len(x) < FEWEST:
        raise Missing(f"no rank correlation from {len(x)} drafts, at least {FEWEST} are needed; name more drafts")
    pairs = list(zip(x, y, strict=True))
    return bootstrap([pairs], lambda drawn: spearman(*zip(*drawn, strict=True)), draws)


def correlation_words(x: Sequence[float], y: Sequence[float]) -> str:
    """A rank correlation as a sentence carries it, or why there is none."""
    try:
        value, low, high = rank_correlation(x, y)
    except Missing as error:
        return str(error)
    text = f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    return text if low > 0 or high < 0 else f"{text}, no correlation shown"

"""What experiments on a target and its drafts share: loading a pair, samplings, and refusals in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import torch

from flashspec.decoding.models import Models, load, rounding
from flashspec.sampling import Sampling
from flashspec.theory.checks import at_least as at_least

# their layers are rounded for the CPU kernels
DRAFTS = {"main": "reference:int8", "shallow": "shallow:int8", "designed": "designed:int8"}


@lru_cache(maxsize=2)
def models_of(target: str, draft: str, dtype: str, weights: str) -> Models:
    """The pair, loaded once a process for each dtype; a draft is "main", another shipped name, or a checkpoint folder."""
    name = DRAFTS.get(draft, draft)
    return load(target, str(rounding(name)[0]) if torch.cuda.is_available() else name, dtype=dtype, weights=weights)


def samplings(temperatures: Sequence[float], rules: Sequence[str], seed: int) -> list[Sampling]:
    """Samplings to run; greedy decoding is the same under every exact rule and comes once. Raises ValueError for bad ones."""
    pairs = [(t, r) for t, r in product(temperatures, rules) if t != 0 or r == rules[0]]
    return [Sampling(t, seed=seed, rule=r) for t, r in pairs]


def among(name: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first value that is not known."""
    choices = tuple(known)
    for value in values:
        if value not in choices:
            raise ValueError(f"{name} must be among {', '.join(choices)}, got {value!r}")

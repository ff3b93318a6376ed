"""What experiments on a target and its drafts share: loading a pair, samplings, digests, and refusals in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flashspec.decoding.method import Method
from flashspec.decoding.models import Models, folder_of, load, rounding
from flashspec.heads.registry import HEADS
from flashspec.sampling import Sampling
from flashspec.theory.checks import at_least as at_least

# their layers are rounded for the CPU kernels
DRAFTS = {"main": "reference:int8", "shallow": "shallow:int8", "designed": "designed:int8"}


@lru_cache(maxsize=2)
def models_of(target: str, draft: str, dtype: str, weights: str) -> Models:
    """The pair, loaded once a process for each dtype; a draft is "main", another shipped name, or a checkpoint folder."""
    return load(target, draft_named(draft), dtype=dtype, weights=weights)


def draft_named(draft: str) -> str:
    """What to load for a draft's name in a table."""
    name = DRAFTS.get(draft, draft)
    return str(rounding(name)[0]) if torch.cuda.is_available() else name


def drafting(head: str, probes: int | None = None, **changes: Any) -> Method:
    """A second model drafting with the head of this name; `probes` reaches the heads that take them."""
    return Method("model", head=head, probes=probes if "probes" in HEADS[head].options else None, **changes)


def folders(params: Any) -> Mapping[str, Path]:
    """Checkpoint folders whose digests enter the origin: the field `target`, and `draft` or `drafts` where there is one."""
    drafts = getattr(params, "drafts", None) or filter(None, (getattr(params, "draft", None),))
    return {"target": folder_of(params.target, "target")} | {d: folder_of(DRAFTS.get(d, d), "draft") for d in drafts}


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

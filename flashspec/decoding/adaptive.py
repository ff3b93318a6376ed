"""When a stage should stop and ask the one above it: a decision on scores, taken before the token they speak for is drawn.

A drafter may not withdraw what it has drawn: that would favour the tokens it is sure of. Stopping before the draw depends on
the prefix alone, so what follows keeps its law (Leviathan et al. 2023, section 2.3, holds for any stopping time of the prefix).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flashspec.sampling import Scores


class Doubt(Protocol):
    """Tells for each row of raw scores [n, m] whether the stage above should answer instead: bool [n], on the scores' device."""

    def __call__(self, scores: Scores) -> Tensor: ...


@dataclass(frozen=True)
class Confidence:
    """In doubt where the largest probability lies below `least`, a share in [0, 1]."""

    least: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.least <= 1.0:
            raise ValueError(f"a confidence threshold is a probability in [0, 1], got {self.least}")

    def __call__(self, scores: Scores) -> Tensor:
        return scores.logits.softmax(-1).amax(-1) < self.least


@dataclass(frozen=True)
class Entropy:
    """In doubt where the entropy lies above `most` nats."""

    most: float

    def __post_init__(self) -> None:
        if not self.most >= 0.0:
            raise ValueError(f"an entropy threshold is at least 0 nats, got {self.most}")

    def __call__(self, scores: Scores) -> Tensor:
        return torch.special.entr(scores.logits.softmax(-1)).sum(-1) > self.most


def nothing_to_say(scores: Scores) -> Tensor:
    """In doubt where no candidate has a probability, as in prompt lookup without a match."""
    return torch.isinf(scores.logits).all(-1)


DOUBTS: dict[str, Callable[[float], Doubt]] = {"confidence": Confidence, "entropy": Entropy}


def doubt_named(name: str, threshold: float | None) -> Doubt | None:
    """A doubt by name and threshold, None for no threshold; ValueError for a threshold that means nothing."""
    return None if threshold is None else DOUBTS[name](threshold)

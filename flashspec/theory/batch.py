"""Batches on a roofline: a pass costs the longer of its memory traffic and its arithmetic (Williams et al. 2009).

At batch 1 both models are bound by memory and k + 1 rows cost what one costs; as the batch grows the check of k + 1 rows
turns to arithmetic first, and speculation stops paying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_positive
from flashspec.theory.rounds import Costs, memory_floor, speedup


@dataclass(frozen=True)
class Machine:
    """Bytes a second and FLOPs a second, as measured or as the maker prints them."""

    bandwidth: float
    arithmetic: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_positive(name, value)


@dataclass(frozen=True)
class Load:
    """One model: bytes of weights a pass reads once, FLOPs a row, bytes of keys and values a sequence reads in a pass."""

    weights: float
    flops: float
    cache: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_latency(name, value)

    def seconds(self, machine: Machine, rows: int, batch: int = 1) -> float:
        """One pass of `rows` rows in each of `batch` sequences."""
        traffic = self.weights + check_block(batch) * self.cache
        return max(memory_floor(traffic, machine.bandwidth), check_block(rows) * batch * self.flops / machine.arithmetic)


class Pair(NamedTuple):
    """A target and its draft on one machine."""

    target: Load
    draft: Load
    machine: Machine

    def costs(self, batch: int = 1) -> Costs:
        """What a round of the whole batch spends: every sequence drafts and is checked together, final token deferred."""
        return Costs(
            draft=self.draft.seconds(self.machine, 1, batch),
            verify=lambda block: self.target.seconds(self.machine, block + 1, batch),
        )

    def speedup(self, tar: float, block: int, batch: int = 1) -> float:
        """Speculation over plain decoding, both at this batch, when every sequence settles `tar` tokens a check."""
        return speedup(tar, self.costs(batch), block, self.target.seconds(self.machine, 1, batch))


def largest_batch(pair: Pair, tar: float, block: int, limit: int = 1 << 16) -> int:
    """The largest batch up to `limit` at which speculation still pays, 0 if it does not pay at any.

    The speedup falls with the batch where keys and values are free; it is searched by doubling, then halving.
    """
    if pair.speedup(tar, block) < 1.0:
        return 0
    low, high = 1, 2
    while high <= limit and pair.speedup(tar, block, high) >= 1.0:
        low, high = high, 2 * high
    while high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (middle, high) if pair.speedup(tar, block, middle) >= 1.0 else (low, middle)
    return min(low, limit)

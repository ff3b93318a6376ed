"""One model over several devices, which read a share of the matrices each.

Attention and MLP of a layer end with an all-reduce each (Shoeybi et al. 2019, Megatron-LM, section 3), which costs its
latency at batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_positive
from flashspec.theory.rounds import Costs

REDUCES = 2


@dataclass(frozen=True)
class Devices:
    """`count` equal devices: bytes a second that each reads, and seconds of one all-reduce among them."""

    count: int
    bandwidth: float
    all_reduce: float

    def __post_init__(self) -> None:
        check_block(self.count)
        check_positive("bandwidth", self.bandwidth)
        check_latency("all_reduce", self.all_reduce)


class Weights(NamedTuple):
    """Bytes of a model that one pass reads, and its layers."""

    bytes: float
    layers: int


def split_costs(target: Weights, draft: Weights, devices: Devices) -> tuple[Costs, float]:
    """What a round spends where the target is split and the draft is not, and the plain step, which a check costs too.

    A step reads a share of the bytes and waits for two all-reduces a layer.
    """
    waits = REDUCES * target.layers * devices.all_reduce if devices.count > 1 else 0.0
    step = target.bytes / devices.count / devices.bandwidth + waits
    return Costs(draft.bytes / devices.bandwidth, step), step

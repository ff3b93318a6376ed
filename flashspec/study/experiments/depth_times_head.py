"""Depth times head: a draft step of one width at falling depth, dense and with FlashHead, beside Amdahl's prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.model.synthetic import shape
from flashspec.study.experiment import Experiment
from flashspec.study.experiments import draft_step
from flashspec.study.experiments.draft_step import Row
from flashspec.study.pairs import at_least


@dataclass(frozen=True)
class Params:
    """Which width to time, at which depths."""

    shape: str = "qwen3-0.6b"  # draft model, random weights
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 28)  # layers
    probes: int = 256  # clusters that FlashHead scores
    past: int = 256  # tokens already in the cache
    repeats: int = 15  # kept repeats of every step
    seed: int = 0  # of the weights

    def __post_init__(self) -> None:
        at_least(self, depths=1, probes=1, past=1, repeats=1)
        shape(self.shape)


def measure(params: Params) -> Iterator[Row]:
    """Time one draft step with each head at each depth, whole and in parts, heads in turns."""
    counts = (params.probes,)
    yield from draft_step.measure(
        draft_step.Params((params.shape,), params.depths, counts, counts, params.past, params.repeats, params.seed)
    )


def points(params: Params) -> list[Params]:
    """One point a depth."""
    return [replace(params, depths=(depth,)) for depth in params.depths]


SMOKE = Params(shape="reference-shallow", depths=(1, 2), probes=64, past=8, repeats=3)
EXPERIMENT = Experiment("depth_times_head", Params, Row, measure, split=points, presets={"smoke": SMOKE})

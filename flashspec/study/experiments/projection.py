"""The isolated projection: one hidden row in, one token out, through each head. Costs at true shapes, weights random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.heads.base import Head
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.measure import clock
from flashspec.measure.roofline import bandwidth
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.model.synthetic import random_rows, shape
from flashspec.scores import Dice
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least

MODELS = {"reference": "reference-draft"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = 64

AnyHead = DenseHead | FlashHead


@dataclass(frozen=True)
class Params:
    """Which shapes and heads to time, and how often."""

    shapes: tuple[str, ...] = ("reference", "qwen3-0.6b")  # shapes of the vocabulary projection
    probes: tuple[int, ...] = (64, 128, 256, 512)  # clusters that FlashHead scores
    cluster_size: int = 16  # tokens a cluster
    repeats: int = 15  # kept repeats of every head
    evict_megabytes: int = 64  # read before each repeat, as a draft body would
    seed: int = 0  # of weights and rows

    def __post_init__(self) -> None:
        at_least(self, repeats=1, cluster_size=1, probes=1)
        for name in self.shapes:
            shape(MODELS.get(name, name))


class Row(NamedTuple):
    """One timed projection of one row."""

    shape: str
    vocab: int
    hidden: int
    head: str
    probes: int
    rows_scored: int
    bytes: int
    seconds: float
    repeat: int
    bandwidth: float


def heads_at(name: str, params: Params) -> dict[tuple[str, int], AnyHead]:
    """Dense heads in both dtypes and a bfloat16 FlashHead at each fitting number of probes, by (name, probes)."""
    config = shape(MODELS.get(name, name))
    weight = random_rows(config.vocab_size, config.hidden, torch.bfloat16, params.seed)
    clusters = -(-config.vocab_size // params.cluster_size)
    flash = stand_in_flash(weight, None, 1, params.cluster_size, params.seed)
    heads: dict[tuple[str, int], AnyHead] = {
        ("dense-bf16", 0): DenseHead(flash.norm, weight),
        ("dense-fp32", 0): DenseHead(flash.norm, weight.float()),
    }
    return heads | {("flash", p): flash.with_probes(p) for p in params.probes if p <= clusters}


def token_call(head: Head, rows: Tensor) -> Callable[[], Tensor]:
    """A call that projects the next of `rows` and picks its best token; rows change so that probes change."""
    turns = iter(range(1 << 62))
    positions, dice = torch.zeros(1, dtype=torch.int64), Dice(0)

    @torch.inference_mode()
    def call() -> Tensor:
        at = next(turns) % len(rows)
        scores = head(rows[at : at + 1], positions, dice)
        return scores.pick(scores.logits.argmax(-1))

    return call


def measure(params: Params) -> Iterator[Row]:
    """Time the vocabulary projection of one hidden row, dense and clustered, caches cold, heads in turns."""
    roof = bandwidth().best
    for name in params.shapes:
        heads = heads_at(name, params)
        width = shape(MODELS.get(name, name)).hidden
        rows = random_rows(ROWS, width, seed=params.seed + 1)
        calls = {f"{head} {probes}": token_call(built, rows) for (head, probes), built in heads.items()}
        raw = clock.interleaved_seconds(calls, clock.Plan(params.repeats, 2, params.evict_megabytes))
        for (head, probes), built in heads.items():
            facts = (name, built.vocab_size, width, head, probes, built.rows_scored, built.bytes_read(1))
            yield from (Row(*facts, s, repeat, roof) for repeat, s in enumerate(raw[f"{head} {probes}"]))


def points(params: Params) -> list[Params]:
    """One point a shape."""
    return [replace(params, shapes=(name,)) for name in params.shapes]


SMOKE = Params(shapes=("reference",), probes=(64,), repeats=3, evict_megabytes=1)
EXPERIMENT = Experiment("projection", Params, Row, measure, split=points, presets={"smoke": SMOKE})

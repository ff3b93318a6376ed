"""What every draft head costs, by vocabulary and width: seconds and bytes of one projection. Weights are random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashspec.heads.candidates import ShortlistHead
from flashspec.heads.registry import HEADS, VARIANTS, Origin, head_named
from flashspec.measure import clock
from flashspec.measure.roofline import bandwidth
from flashspec.measure.stand_ins import stand_in_flash, stand_in_preview
from flashspec.model.memory import free_bytes
from flashspec.model.synthetic import random_rows
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.projection import ROWS, token_call
from flashspec.study.pairs import among, at_least

COPIES = 10  # of the weight that all heads of one shape hold together, at most
UNTRAINED = ("dense", "int8", "int4", "flash", "flash_int8", "flash_int4", "fr_spec", "in_context", "preview")


@dataclass(frozen=True)
class Params:
    """Which heads to time, at which shapes, and how often."""

    vocabs: tuple[int, ...] = (16384, 65536, 151936, 262144)  # ids
    widths: tuple[int, ...] = (384, 1024, 2560, 5120)  # of a hidden row
    heads: tuple[str, ...] = UNTRAINED  # heads whose cost needs no training
    probes: tuple[int, ...] = (64, 256)  # clusters that a FlashHead scores
    shortlists: tuple[int, ...] = (2048,)  # ids that a head with a shortlist scores exactly
    repeats: int = 7  # kept repeats of every head
    evict_megabytes: int = 64  # read before each repeat, as a draft body would
    seed: int = 0  # of weights and rows

    def __post_init__(self) -> None:
        among("heads", self.heads, UNTRAINED)
        at_least(self, vocabs=2, widths=8, probes=1, shortlists=1, repeats=1)


class Row(NamedTuple):
    """One timed projection; `size` is the probes or the shortlist of heads that have one, else 0.

    Where a shape does not fit the free memory there is one row, without seconds, and `note` says so.
    """

    vocab: int
    hidden: int
    head: str
    size: int
    rows_scored: int
    bytes: int
    seconds: float | None
    repeat: int
    bandwidth: float
    note: str = ""


def heads_at(weight: Tensor, params: Params) -> dict[tuple[str, int], Any]:
    """Every head over a weight [vocab, hidden], at each fitting size, by (name, size)."""
    flash = stand_in_flash(weight, None, 1, seed=params.seed)
    found: dict[tuple[str, int], Any] = {}
    for name in params.heads:
        if name.startswith("flash"):
            head = flash.with_plan(**VARIANTS[name]) if name in VARIANTS else flash
            found |= {(name, p): head.with_probes(p) for p in params.probes if p <= head.table.clusters}
        elif "shortlist" in HEADS[name].options:
            listed = stand_in(name, weight)
            found |= {(name, n): listed.with_shortlist(n) for n in params.shortlists if n <= len(weight)}
        else:
            found[name, 0] = head_named(name, Origin(weight))
    return found


def stand_in(name: str, weight: Tensor) -> Any:
    """A head with a shortlist that has learned nothing and costs what it would cost."""
    if name == "preview":
        return stand_in_preview(weight)
    return ShortlistHead.build(weight, torch.arange(len(weight))) if name == "fr_spec" else head_named(name, Origin(weight))


def measure(params: Params) -> Iterator[Row]:
    """Time one projection by every head at every shape that fits the memory, caches cold, heads in turns."""
    roof = bandwidth().best
    for vocab, width in product(params.vocabs, params.widths):
        row = partial(Row, vocab, width)
        needed, free = COPIES * 2 * vocab * width, free_bytes(torch.device("cpu"))
        if free is not None and needed > free:
            yield row("", 0, 0, 0, None, 0, roof, f"left out: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            continue
        heads = heads_at(random_rows(vocab, width, torch.bfloat16, params.seed), params)
        rows = random_rows(ROWS, width, seed=params.seed + 1)
        calls = {f"{name} {size}": token_call(head, rows) for (name, size), head in heads.items()}
        raw = clock.interleaved_seconds(calls, clock.Plan(params.repeats, 2, params.evict_megabytes))
        for (name, size), head in heads.items():
            seconds = enumerate(raw[f"{name} {size}"])
            yield from (row(name, size, head.rows_scored, head.bytes_read(1), s, repeat, roof) for repeat, s in seconds)


def points(params: Params) -> list[Params]:
    """One point a shape."""
    return [replace(params, vocabs=(vocab,), widths=(width,)) for vocab, width in product(params.vocabs, params.widths)]


SMOKE = Params(vocabs=(4096,), widths=(128,), probes=(16,), shortlists=(256,), repeats=3, evict_megabytes=1)
EXPERIMENT = Experiment("head_cost", Params, Row, measure, split=points, presets={"smoke": SMOKE})

"""What a check of n tokens costs the target in each weight format: the int4 product is cheapest at one row only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flashspec.decoding.models import load
from flashspec.heads.dense import DenseHead
from flashspec.measure import clock
from flashspec.measure.roofline import bandwidth, body_work, stored_bytes
from flashspec.model.reader import SpanReader
from flashspec.model.transformer import Transformer
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least, folders

FORMATS = {"bf16": ("bfloat16", "dense"), "fp32": ("float32", "dense"), "int4": ("bfloat16", "int4")}


@dataclass(frozen=True)
class Params:
    """Which formats of the target to read how many rows with."""

    target: str = "reference"  # target model: shipped name or folder; int4 needs an AWQ checkpoint
    formats: tuple[str, ...] = ("bf16", "fp32", "int4")  # weight formats
    rows: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # tokens read at once; a check of k reads k + 1
    past: int = 128  # tokens already in the cache
    repeats: int = 15  # kept repeats

    def __post_init__(self) -> None:
        among("formats", self.formats, FORMATS)
        at_least(self, rows=1, past=1, repeats=1)


class Row(NamedTuple):
    """One timed read of `rows` tokens by the target, body and head."""

    format: str
    rows: int
    bytes: int
    seconds: float
    repeat: int
    bandwidth: float


def measure(params: Params) -> Iterator[Row]:
    """Time the target reading n tokens and scoring all of them, formats and n in turns."""
    roof = bandwidth().best
    models = {name: load(params.target, None, *_dtype(name)).target for name in params.formats}
    calls = {f"{name} {rows}": call for name, model in models.items() for rows, call in calls_of(model, params).items()}
    raw = clock.interleaved_seconds(calls, clock.Plan(params.repeats, 2))
    for label, seconds in raw.items():
        name, rows = label.split()
        facts = (name, int(rows), bytes_of(models[name], int(rows), params.past))
        yield from (Row(*facts, s, repeat, roof) for repeat, s in enumerate(seconds))


def calls_of(model: Transformer, params: Params) -> dict[int, Callable[[], object]]:
    """A check of n rows for every n: read, score, forget."""
    tokens = torch.arange(params.past + max(params.rows)) % model.config.vocab_size
    reader, head = SpanReader(model, context=len(tokens)), DenseHead(model.norm, model.head_weight)
    reader.read(tokens[: params.past])

    @torch.inference_mode()
    def check(rows: int) -> None:
        reader.read(tokens[: params.past + rows])
        head(reader.rows[params.past : params.past + rows])
        reader.rewind(params.past)

    return {rows: lambda rows=rows: check(rows) for rows in params.rows}  # type: ignore[misc]


def bytes_of(model: Transformer, rows: int, past: int) -> int:
    """Layers and head once, and the cache of what was read before."""
    cache = body_work(model.config, rows, past, itemsize=0, cached=4).bytes
    return stored_bytes(model.layers) + model.head_weight.nbytes + cache


def _dtype(name: str) -> tuple[str, str, str]:
    dtype, weights = FORMATS[name]
    return dtype, "cpu", weights


SMOKE = Params(formats=("bf16", "fp32"), rows=(1, 5), past=8, repeats=2)
EXPERIMENT = Experiment("formats", Params, Row, measure, models=folders, presets={"smoke": SMOKE})

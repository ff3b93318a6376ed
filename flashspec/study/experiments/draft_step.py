"""One draft step, body and head: what a cheaper head is worth once the layers before it are paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.heads.dense import DenseHead
from flashspec.measure import clock
from flashspec.measure.roofline import bandwidth, body_work
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.model.reader import SpanReader
from flashspec.model.synthetic import random_rows, shape, synthetic
from flashspec.model.transformer import Transformer
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.projection import AnyHead, token_call
from flashspec.study.pairs import at_least

MODELS = {"reference": "reference-draft", "reference-shallow": "reference-shallow"}


@dataclass(frozen=True)
class Params:
    """Which draft shapes to time, at which depth, behind how long a past."""

    shapes: tuple[str, ...] = ("reference", "reference-shallow", "qwen3-0.6b")  # draft models, random weights
    depths: tuple[int, ...] = (0,)  # layers; 0 means the shape's own
    reference_probes: tuple[int, ...] = (64, 128)  # FlashHead probes at the 16,384-token vocabulary
    probes: tuple[int, ...] = (256, 512)  # FlashHead probes at larger vocabularies
    past: int = 256  # tokens already in the cache
    repeats: int = 15  # kept repeats of every step
    seed: int = 0  # of the weights

    def __post_init__(self) -> None:
        at_least(self, past=1, repeats=1, depths=0)
        for name in self.shapes:
            shape(MODELS.get(name, name))


class Row(NamedTuple):
    """One turn: the whole step timed un-instrumented, and its two parts timed alone."""

    shape: str
    layers: int
    head: str
    probes: int
    body_seconds: float
    head_seconds: float
    step_seconds: float
    bytes: int
    repeat: int
    bandwidth: float


class Draft(NamedTuple):
    """A draft ready to take one step: its past is read, one token is pending."""

    model: Transformer
    reader: SpanReader
    tokens: Tensor

    def body(self) -> Tensor:
        """Read the pending token and forget it again; its hidden row [1, hidden]."""
        self.reader.read(self.tokens)
        self.reader.rewind(len(self.tokens) - 1)
        return self.reader.rows[len(self.tokens) - 1 : len(self.tokens)]


def prepare(name: str, depth: int, params: Params) -> Draft:
    """A random-weight draft of this shape with `past` tokens read."""
    model = synthetic(MODELS.get(name, name), torch.bfloat16, params.seed, depth or None)
    reader = SpanReader(model, context=params.past + 1)
    tokens = torch.arange(params.past + 1) % model.config.vocab_size
    reader.read(tokens[:-1])
    return Draft(model, reader, tokens)


def heads_of(model: Transformer, params: Params) -> dict[tuple[str, int], AnyHead]:
    """The faster dense head and a bfloat16 FlashHead at each number of probes, by (name, probes)."""
    wanted = params.probes if model.config.vocab_size > 1 << 16 else params.reference_probes
    flash = stand_in_flash(model.head_weight, model.norm, 1, seed=params.seed)
    return {("dense", 0): fastest_dense(model)} | {("flash", p): flash.with_probes(p) for p in wanted}


def fastest_dense(model: Transformer) -> DenseHead:
    """The dense head in bfloat16 or float32, whichever projects a row faster here."""
    heads = [DenseHead(model.norm, model.head_weight.to(dtype)) for dtype in (torch.bfloat16, torch.float32)]
    rows = random_rows(8, model.config.hidden)
    raw = clock.interleaved_seconds({str(i): token_call(h, rows) for i, h in enumerate(heads)}, clock.Plan(5, 1))
    return min(zip(heads, raw.values(), strict=True), key=lambda pair: clock.median(pair[1]))[0]


def calls_of(draft: Draft, head: AnyHead) -> dict[str, Callable[[], object]]:
    """Body, head and whole step as calls; inside a turn each follows the body it would follow in a decode."""
    rows = draft.body().clone().expand(8, -1)
    project = token_call(head, rows)

    @torch.inference_mode()
    def step() -> Tensor:
        return token_call(head, draft.body())()

    return {"step": step, "body": draft.body, "head": project}


def measure(params: Params) -> Iterator[Row]:
    """Time one draft step with each head, whole and in parts, heads in turns."""
    roof = bandwidth().best
    for name in params.shapes:
        for depth in params.depths:
            yield from _rows(name, prepare(name, depth, params), params, roof)


def _rows(name: str, draft: Draft, params: Params, roof: float) -> Iterator[Row]:
    heads = heads_of(draft.model, params)
    calls = {(*key, part): call for key, head in heads.items() for part, call in calls_of(draft, head).items()}
    raw = clock.interleaved_seconds({str(key): call for key, call in calls.items()}, clock.Plan(params.repeats, 2))
    body = body_work(draft.model.config, 1, params.past).bytes
    for (kind, probes), head in heads.items():
        parts = [raw[str((kind, probes, part))] for part in ("body", "head", "step")]
        facts = (name, draft.model.config.layers, kind, probes)
        for repeat, seconds in enumerate(zip(*parts, strict=True)):
            body_s, head_s, step_s = seconds
            yield Row(*facts, body_s, head_s, step_s, body + head.bytes_read(1), repeat, roof)


def points(params: Params) -> list[Params]:
    """One point a shape."""
    return [replace(params, shapes=(name,)) for name in params.shapes]


SMOKE = Params(shapes=("reference-shallow",), reference_probes=(64,), past=8, repeats=3)
EXPERIMENT = Experiment("draft_step", Params, Row, measure, split=points, presets={"smoke": SMOKE})

"""Depth against width at true shapes: what one step of a draft costs when its parameters are spread over fewer, wider layers.

Weights are random: these are costs, and say nothing about texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from flashspec.heads.dense import DenseHead
from flashspec.measure.depths import SHORT
from flashspec.measure.roofline import stored_bytes
from flashspec.model.config import ModelConfig
from flashspec.model.reshape import reshaped
from flashspec.model.synthetic import shape, synthetic
from flashspec.model.transformer import Transformer
from flashspec.study import papers
from flashspec.study.experiment import Experiment
from flashspec.study.experiments import real_shapes
from flashspec.study.experiments.real_shapes import judged, one_token, ready, roof, timed
from flashspec.study.pairs import at_least

PUBLISHED = (papers.YAN_DEEP.shape, papers.YAN_WIDE.shape, "NoFT-Wide-796M", "NoFT-Wide-543M", "NoFT-Wide-290M")
PAPER = "Sheared-LLaMA"


@dataclass(frozen=True)
class Params:
    """Which shapes to time, where."""

    shapes: tuple[str, ...] = ("OPT-125M", "OPT-1.3B", "Qwen3-0.6B")  # each also at a half, a quarter, ... of its layers
    divisors: tuple[int, ...] = (1, 2, 4)  # a body's parameters are spread over layers / divisor layers
    published: tuple[str, ...] = PUBLISHED  # drafts of the paper, as they are
    target: str = papers.YAN_TARGET  # the paper's target, timed at a few layers where it is deeper; empty means none
    k: int = 8  # drafted tokens a check of the target
    past: int = 128  # tokens already in the cache
    device: str = "cpu"  # where to measure
    graphs: str = "auto"  # FLASHSPEC_GRAPHS on a CUDA device: auto, eager or 0 (launch every operation by itself)
    repeats: int = 7  # kept repeats of every step

    def __post_init__(self) -> None:
        at_least(self, divisors=1, k=1, past=1, repeats=1)
        for name in (*self.shapes, *self.published, *filter(None, (self.target,))):
            shape(name)
        _ = self.costs

    @property
    def costs(self) -> real_shapes.Params:
        """The same place and repeats for the readers of the real-shapes study."""
        return real_shapes.Params(device=self.device, graphs=(self.graphs,), k=self.k, past=self.past, repeats=self.repeats)


class Row(NamedTuple):
    """One timed call of one shape.

    `group` holds shapes to be compared: a base shape and its spreads, the paper's drafts, or "target". `what` is "step" (body and
    head), "body", or "check" (`rows` tokens judged). `timed` layers were built; more `layers` than that are to be extrapolated.
    """

    group: str
    shape: str
    layers: int
    timed: int
    hidden: int
    heads: int
    ffn: int
    body: int
    head: int
    what: str
    rows: int
    bytes: int
    seconds: float
    repeat: int
    bandwidth: float


class Subject(NamedTuple):
    """A shape to time at its own depth, or at `depth` layers of it."""

    group: str
    name: str
    config: ModelConfig
    depth: int


def subjects(params: Params) -> list[Subject]:
    """Every shape: the spreads, the paper's drafts, and the target at two depths."""
    found = []
    for name, divisor in ((name, divisor) for name in params.shapes for divisor in params.divisors):
        whole = shape(name)
        layers = max(1, whole.layers // divisor)
        config = whole if layers == whole.layers else reshaped(whole, layers)
        found.append(Subject(name, f"{name}, {layers} layers", config, layers))
    found += [Subject(PAPER, name, shape(name), shape(name).layers) for name in params.published]
    if params.target:
        target = shape(params.target)
        depths = SHORT if target.layers > SHORT[-1] else (target.layers,)
        found += [Subject("target", params.target, target, depth) for depth in depths]
    return found


def measure(params: Params) -> Iterator[Row]:
    """Time a step of drafts with equal parameters at several depths, and a check of the paper's target."""
    speed = roof(params.device)
    for subject in subjects(params):
        model = synthetic(replace(subject.config, layers=subject.depth), device=params.device)
        calls = (check_calls if subject.group == "target" else step_calls)(model, params)
        yield from rows_of(subject, model, timed(calls, params.costs), speed)


def step_calls(model: Transformer, params: Params) -> dict[str, Callable[[], object]]:
    """A whole step and its body alone."""
    draft, head = ready(model, params.costs, params.graphs), DenseHead(model.norm, model.head_weight)
    return {"step 1": lambda: one_token(head, draft.read(1)), "body 1": partial(draft.read, 1)}


def check_calls(model: Transformer, params: Params) -> dict[str, Callable[[], object]]:
    """A check of k drafted tokens, and a plain token."""
    head = DenseHead(model.norm, model.head_weight)
    rows = (1, params.k + 1)
    return {f"check {n}": partial(judged, head, ready(model, params.costs, params.graphs, n), n) for n in rows}


def rows_of(subject: Subject, model: Transformer, raw: Iterator[tuple[str, int, float]], speed: float) -> Iterator[Row]:
    """Timed calls as rows."""
    config, read = subject.config, stored_bytes(model.layers)
    facts = (subject.group, subject.name, config.layers, subject.depth, config.hidden, config.heads, config.ffn)
    for name, repeat, seconds in raw:
        what, _, rows = name.partition(" ")
        size = read + (0 if what == "body" else stored_bytes_of_head(model))
        yield Row(*facts, config.body_parameters, config.head_parameters, what, int(rows), size, seconds, repeat, speed)


def stored_bytes_of_head(model: Transformer) -> int:
    """Bytes of the vocabulary projection."""
    return model.head_weight.nbytes


def points(params: Params) -> list[Params]:
    """One point a group of shapes."""
    none = replace(params, shapes=(), published=(), target="")
    spread = [replace(none, shapes=(name,)) for name in params.shapes]
    return [*spread, *([replace(none, published=params.published)] if params.published else []),
            *([replace(none, target=params.target)] if params.target else [])]  # fmt: skip


SMOKE = Params(shapes=("reference-target",), divisors=(1, 4), published=(), target="reference-target", k=2, past=8, repeats=3)
EXPERIMENT = Experiment("draft_latency", Params, Row, measure, split=points, presets={"smoke": SMOKE})

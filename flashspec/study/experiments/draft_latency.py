"""Depth against width at true shapes: what one step of a draft costs when its parameters are spread over fewer, wider layers.

Weights are random: these are costs, and say nothing about texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

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
from flashspec.study.experiments.real_shapes import checked, one_token, ready, roof, timed
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
    """Time a step of drafts with equal parameters at several depths, and a check of the paper's target, each group in turns."""
    speed = roof(params.device)
    for _, group in groupby(subjects(params), key=lambda subject: subject.group):
        yield from in_turns(list(group), params, speed)


def in_turns(group: Sequence[Subject], params: Params, speed: float) -> Iterator[Row]:
    """Rows of shapes that are compared: all their calls in turns, so that they meet the machine in the same state."""
    models = models_of(group, params.device)
    calls = {
        f"{number} {name}": call
        for number, (subject, model) in enumerate(zip(group, models, strict=True))
        for name, call in (check_calls if subject.group == "target" else step_calls)(model, params).items()
    }
    for name, repeat, seconds in timed(calls, params.costs):
        number, what, rows = name.split()
        timing = (what, int(rows), bytes_of(models[int(number)], what), seconds, repeat, speed)
        cells: list[Any] = [*facts(group[int(number)]), *timing]
        yield Row(*cells)


def models_of(group: Sequence[Subject], device: str) -> list[Transformer]:
    """A model for every subject; the depths of a target are the lowest layers of one."""
    if group[0].group != "target":
        return [synthetic(subject.config, device=device) for subject in group]
    deep = synthetic(replace(group[-1].config, layers=group[-1].depth), device=device)
    return [deep.with_layers(deep.layers[: subject.depth]) for subject in group]


def step_calls(model: Transformer, params: Params) -> dict[str, Callable[[], object]]:
    """A whole step and its body alone."""
    draft, head = ready(model, params.costs.past, params.costs.k, params.graphs), DenseHead(model.norm, model.head_weight)
    return {"step 1": lambda: one_token(head, draft.read(1)), "body 1": partial(draft.read, 1)}


def check_calls(model: Transformer, params: Params) -> dict[str, Callable[[], object]]:
    """A check of k drafted tokens, and a plain token."""
    head = DenseHead(model.norm, model.head_weight)
    costs, rows = params.costs, (1, params.k + 1)
    return {f"check {n}": partial(checked, head, ready(model, costs.past, costs.k, params.graphs, n), n) for n in rows}


def facts(subject: Subject) -> tuple[Any, ...]:
    """The columns that say which shape a row is about."""
    config = subject.config
    sizes = (config.layers, subject.depth, config.hidden, config.heads, config.ffn, config.body_parameters)
    return (subject.group, subject.name, *sizes, config.head_parameters)


def bytes_of(model: Transformer, what: str) -> int:
    """Bytes of the layers, and of the vocabulary projection unless only the body is timed."""
    return stored_bytes(model.layers) + (0 if what == "body" else model.head_weight.nbytes)


def points(params: Params) -> list[Params]:
    """One point a group of shapes."""
    none = replace(params, shapes=(), published=(), target="")
    spread = [replace(none, shapes=(name,)) for name in params.shapes]
    return [*spread, *([replace(none, published=params.published)] if params.published else []),
            *([replace(none, target=params.target)] if params.target else [])]  # fmt: skip


SMOKE = Params(shapes=("reference-target",), divisors=(1, 4), published=(), target="reference-target", k=2, past=8, repeats=3)
EXPERIMENT = Experiment("draft_latency", Params, Row, measure, split=points, presets={"smoke": SMOKE})

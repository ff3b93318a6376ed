"""Bytes of the tensors that a hierarchy keeps alive, at true shapes and by use: counted, not measured, so no machine matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from flashspec.decoding.hierarchy import hispec, self_speculation
from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits
from flashspec.measure.memory import Footprint, footprint, proposal_bytes
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.model.config import ModelConfig
from flashspec.model.synthetic import random_rows, shape, synthetic
from flashspec.model.transformer import Transformer
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least

PROMPT = [1, 2, 3, 4]


@dataclass(frozen=True)
class Params:
    """Which shapes to count; exits lie at an eighth and a quarter of the depth, as in HiSpec."""

    shapes: tuple[str, ...] = ("reference-target", "Qwen3-0.6B")  # published shapes
    context: int = 1024  # tokens that caches and rows have room for
    n_d: int = 4  # tokens drafted before the verifier above acts
    n_i: int = 8  # tokens that wait before the whole model acts
    probes: int = 64  # clusters that FlashHead scores
    temperature: float = 1.0  # 0 is greedy

    def __post_init__(self) -> None:
        at_least(self, context=64, n_d=1, n_i=1, probes=1)
        for name in self.shapes:
            if shape(name).layers < 8:
                raise ValueError(f"shape {name!r} has {shape(name).layers} layers; exits at an eighth need at least 8")


@dataclass(frozen=True)
class Row:
    """Bytes of one method by use; `proposals` are the most that wait at once where every draft stands."""

    shape: str
    method: str
    reuse: bool
    draft_exit: int
    verify_exit: int
    weights: int
    cache: int
    rows: int
    proposals: int
    index: int
    other: int


def measure(params: Params) -> Iterator[Row]:
    """Count live bytes of plain decoding, self-speculation and HiSpec, its FlashHead apart, and of caches that are not shared."""
    for name in params.shapes:
        for method, chosen in methods_of(params, shape(name).layers):
            found, waiting = counted(name, chosen, params), waiting_bytes(name, chosen, params)
            exits = [*chosen.exits, 0, 0]
            yield Row(name, method, chosen.reuse, exits[0], exits[1], found.weights, found.cache, found.rows, waiting,
                      found.index, found.other)  # fmt: skip


def methods_of(params: Params, layers: int) -> list[tuple[str, Method]]:
    """The methods by name; the last, whose stages share nothing, is what engines without reuse would hold."""
    stacked = hispec(layers // 8, layers // 4, params.n_d, params.n_i)
    return [
        ("baseline", METHODS["baseline"]),
        ("self_speculation", self_speculation(layers // 8, params.n_d)),
        ("hispec", stacked),
        ("hispec_flash", replace(stacked, head="flash", probes=params.probes)),
        ("hispec", replace(stacked, reuse=False)),
    ]


def counted(name: str, method: Method, params: Params) -> Footprint:
    """What a method holds at a shape of full depth, whose tensors have sizes and no memory."""
    with torch.device("meta"):
        model = Transformer(shape(name)).to(torch.bfloat16).eval().requires_grad_(False)
    stages = build(replace(method, head="dense", probes=None), Models(model), context=params.context)
    return footprint(with_index(stages, shape(name), params) if method.head == "flash" else stages)


def with_index(stages: list[Stage], config: ModelConfig, params: Params) -> list[Stage]:
    """The same stages under a FlashHead of this vocabulary and width, whose clusters are arbitrary."""
    table = random_rows(config.vocab_size, config.hidden, torch.bfloat16)
    dense = cast(Any, stages[0].head)
    head = replace(stand_in_flash(table, None, params.probes), norm=dense.norm, weight=dense.weight)
    return [stages[0]._replace(head=head), *stages[1:]]


def waiting_bytes(name: str, method: Method, params: Params) -> int:
    """Bytes of waiting proposals at a shape's vocabulary, in a decode whose layers leave rows as they are: every draft stands."""
    if not method.exits:
        return 0
    slim = replace(shape(name, len(method.exits) + 1), hidden=64, ffn=64, heads=2, kv_heads=2, head_dim=32)
    model = synthetic(slim, torch.float32)
    for layer in cast(Any, model.layers):
        layer.attention.out.weight.zero_()
        layer.mlp.down.weight.zero_()
    plain = replace(method, head="dense", probes=None, exits=tuple(range(1, len(method.exits) + 1)))
    sampling = Sampling(params.temperature, rule="speculative")
    return proposal_bytes(build(plain, Models(model), sampling, context=64), PROMPT, Limits(4 * max(params.n_i, params.n_d)))


SMOKE = Params(shapes=("reference-target",), n_d=2, n_i=4)
EXPERIMENT = Experiment("hierarchy_memory", Params, Row, measure, measured=False, presets={"smoke": SMOKE})

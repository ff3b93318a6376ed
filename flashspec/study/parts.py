"""What a piece of a round costs at published or made-up shapes, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashspec.heads.base import DenseHead
from flashspec.heads.candidates import ShortlistHead
from flashspec.heads.registry import HEADS, RANKED, VARIANTS, Origin, head_named
from flashspec.measure import clock
from flashspec.measure.pieces import Ahead, Ready, checked, one_token, stand_in_flash, stand_in_preview
from flashspec.measure.runs import stored_bytes
from flashspec.models.config import ModelConfig
from flashspec.models.gguf import opened
from flashspec.models.gguf_checkpoint import config_of as gguf_config
from flashspec.models.pairs import PAIRS, published
from flashspec.models.synthetic import random_rows, reshaped, shape, synthetic
from flashspec.models.transformer import Transformer
from flashspec.study.experiment import Experiment, by
from flashspec.study.parameters import among, at_least, presets_of
from flashspec.study.racers import dtype_of, format_of, options_of

PIECES = ("projection", "step", "body", "head", "burst", "check")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int4": torch.bfloat16}
FILES = {name if role == "target" else f"{name}-{role}": (name, role) for name, pair in PAIRS.items() for role in pair}
OWN = "auto"  # the format of a published model's file
ROWS = 64  # hidden rows that projections take in turn


@dataclass(frozen=True)
class Params:
    """Which pieces to time, at which shapes. Every list also takes a single value."""

    piece: tuple[str, ...] = ("projection", "step", "body", "head")  # pieces: projection, step, body, head, burst, check
    shape: tuple[str, ...] = ("reference-draft",)  # shapes, or models: qwen, qwen-draft; projections: IDSxWIDTH
    layers: tuple[int, ...] = (0,)  # layers to build; 0 means the shape's own
    spread: tuple[int, ...] = (1,)  # the same parameters in this many times fewer, wider layers
    format: tuple[str, ...] = ("bfloat16",)  # bfloat16, float32, int4 (layers only), auto (a file's own)
    head: tuple[str, ...] = ("dense", "flash")  # vocabulary heads
    probes: tuple[int, ...] = (64,)  # clusters that a FlashHead scores
    shortlist: tuple[int, ...] = (2048,)  # ids that a head with a shortlist scores exactly
    rows: tuple[int, ...] = (1, 5)  # tokens that a check reads and scores at once
    k: tuple[int, ...] = (4,)  # drafted tokens per burst
    past: int = 256  # tokens already in the cache
    cold_megabytes: int = 64  # megabytes read before each projection, as a body would
    device: str = "cpu"  # where to measure
    repeats: int = 15  # turns; in each, every piece is timed once
    seed: int = 0  # seed of weights and rows

    def __post_init__(self) -> None:
        among("piece", self.piece, PIECES)
        among("head", self.head, [name for name in HEADS if name != RANKED[1]])
        among("format", self.format, (*DTYPES, OWN))
        at_least(self, layers=0, spread=1, probes=1, shortlist=1, rows=1, k=1, past=1, cold_megabytes=0, repeats=1)
        for name in self.shape:
            if (name in FILES) != (self.format == (OWN,)):
                raise ValueError(f"format {OWN} is that of the models {', '.join(FILES)}; got shape {name!r}, {self.format}")
            if name not in FILES:
                config_of(name, 0, 1)
            if bare(name) and set(self.piece) != {"projection"}:
                raise ValueError(f"shape {name!r} is a projection alone; with it, piece must be projection")


@dataclass(frozen=True)
class Row:
    """Seconds of one piece in one turn. `format` is that of a head's rows, or of the layers of a check.

    `layers` were built, `depth` is the shape's own; `bandwidth` is the memory's speed in the same run, in bytes per second.
    """

    piece: str
    shape: str
    head: str
    format: str
    seconds: float
    turn: int
    group: str = ""
    layers: int | None = None
    depth: int | None = None
    hidden: int | None = None
    heads: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    body: int | None = None
    head_parameters: int | None = None
    probes: int = 0
    shortlist: int = 0
    rows: int = 1
    k: int = 0
    rows_scored: int | None = None
    past: int | None = None
    cold_megabytes: int = 0
    bytes: int | None = None
    bandwidth: float | None = None
    device: str = "cpu"


class Piece(NamedTuple):
    """A call to time, and the columns that say what it is."""

    facts: dict[str, Any]
    call: Callable[[], object]


def measure(params: Params) -> Iterator[Row]:
    """Time the pieces of a round, all of one shape and of its spreads in turns."""
    configs = [config_of(params.shape[0], params.layers[0], spread) for spread in params.spread]
    speed, pieces = clock.roof(params.device), [piece for config in configs for piece in pieces_of(config, params)]
    for megabytes in dict.fromkeys((params.cold_megabytes, 0)):
        chosen = [piece for piece in pieces if piece.facts.get("cold_megabytes", 0) == megabytes]
        plan = clock.Plan(params.repeats, 2, megabytes, params.device)
        yield from (Row(**facts, bandwidth=speed) for facts in timed(chosen, plan))


def timed(pieces: Sequence[Piece], plan: clock.Plan) -> Iterator[dict[str, Any]]:
    """The columns of every turn of every piece, all of them in turns."""
    calls = {str(number): piece.call for number, piece in enumerate(pieces)}
    with torch.inference_mode():
        raw = clock.interleaved_seconds(calls, plan)
    for piece, seconds in zip(pieces, raw.values(), strict=True):
        yield from ({**piece.facts, "device": plan.device, "seconds": s, "turn": turn} for turn, s in enumerate(seconds))


def config_of(name: str, layers: int, spread: int) -> ModelConfig:
    """A shape's configuration with these layers (0: its own), spread over fewer; IDSxWIDTH has one layer."""
    if name in FILES:
        return gguf_config(opened(published(*FILES[name])))
    if bare(name):
        ids, width = map(int, name.split("x"))
        return replace(shape("reference-draft"), vocab_size=ids, hidden=width, layers=1)
    whole = shape(name, layers or None)
    return reshaped(whole, max(1, whole.layers // spread)) if spread > 1 else whole


def bare(name: str) -> bool:
    """Whether a shape is a vocabulary projection alone, IDSxWIDTH."""
    ids, _, width = name.partition("x")
    return ids.isdecimal() and width.isdecimal()


def pieces_of(config: ModelConfig, params: Params) -> Iterator[Piece]:
    """Every piece of one shape; pieces of the same format share weights."""
    for form in params.format:
        facts = {"shape": params.shape[0], "hidden": config.hidden, "vocab": config.vocab_size}
        if set(params.piece) == {"projection"} and form != OWN:
            weight = random_rows(config.vocab_size, config.hidden, DTYPES[form], params.seed).to(params.device)
            yield from _projections(Origin(weight), facts, params)
            continue
        if form == OWN:
            model, depth = Transformer.load(published(*FILES[params.shape[0]])), config.layers
        else:
            name = f"{params.shape[0]}-AWQ" if form == "int4" else config
            model = synthetic(name, DTYPES[form], params.seed, device=params.device)
            depth = shape(params.shape[0]).layers
        deep = {"layers": config.layers, "depth": depth, "heads": config.heads, "ffn": config.ffn}
        facts |= {**deep, "body": config.body_parameters, "head_parameters": config.head_parameters}
        if "projection" in params.piece:
            yield from _projections(Origin(model.vocabulary, model.norm), facts, params)
        yield from _reads(model, {**facts, "past": params.past}, params, form)


def _projections(origin: Origin, facts: dict[str, Any], params: Params) -> Iterator[Piece]:
    rows = random_rows(ROWS, origin.weight.shape[1], seed=params.seed + 1).to(origin.weight.device)
    for named, head in heads_over(origin, params):
        cold = {"piece": "projection", "bytes": head.bytes_read(1), "cold_megabytes": params.cold_megabytes}
        yield Piece({**facts, **named, **cold}, partial(_next_token, head, cycle(rows.split(1)).__next__))


def _reads(model: Any, facts: dict[str, Any], params: Params, form: str) -> Iterator[Piece]:
    """Steps, bodies, heads and bursts of a draft, and checks of a target, of this model."""
    layers = stored_bytes(model.layers)
    draft = Ready(model, params.past, max(params.k))
    dense = {"head": "dense", "format": form, "rows_scored": model.config.vocab_size}
    if "body" in params.piece:
        yield Piece({**facts, **dense, "piece": "body", "bytes": layers}, partial(draft.read, 1))
    for named, head in heads_over(Origin(model.vocabulary, model.norm), params):
        once = layers + head.bytes_read(1)
        if "step" in params.piece:
            yield Piece({**facts, **named, "piece": "step", "bytes": once}, partial(_next_token, head, partial(draft.read, 1)))
        if "head" in params.piece:
            call = partial(one_token, head, draft.read(1)[-1:].clone())
            yield Piece({**facts, **named, "piece": "head", "bytes": head.bytes_read(1)}, call)
        for k in params.k if "burst" in params.piece else ():
            yield Piece({**facts, **named, "piece": "burst", "k": k, "bytes": k * once}, Ahead(draft, head, k))
    head = DenseHead(model.norm, model.vocabulary)
    for rows in params.rows if "check" in params.piece else ():
        size = layers + head.bytes_read(rows)
        target = Ready(model, params.past, max(params.k), rows)
        yield Piece({**facts, **dense, "piece": "check", "rows": rows, "bytes": size}, partial(checked, head, target, rows))


def heads_over(origin: Origin, params: Params) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every head at every setting that fits the vocabulary, untrained, and the columns that describe it."""
    ids, dtype = origin.weight.shape[0], dtype_of(origin.weight)
    flash = functools.cache(partial(stand_in_flash, origin.weight, origin.norm, 1, seed=params.seed))
    for name in params.head:
        made: Any
        if name.startswith("flash"):
            made = flash().with_plan(**VARIANTS.get(name, {}))
        elif name == "preview":
            made = stand_in_preview(origin.wide, origin.norm)
        elif name in RANKED:
            made = ShortlistHead.build(origin.wide, torch.arange(ids), origin.norm)
        else:
            made = head_named(name, origin)
        for options in options_of(params, name):
            if "probes" in options and options["probes"] > flash().clusters.count:
                continue
            if options.get("shortlist", 0) <= ids:
                head = made.with_plan(**options) if options else made
                yield {"head": name, "format": format_of(name, dtype), "rows_scored": head.rows_scored, **options}, head


def _next_token(head: Any, row: Callable[[], Tensor]) -> Tensor:
    return one_token(head, row())


PRESETS = presets_of("parts", Params)
EXPERIMENT = Experiment("parts", Params, Row, measure, split=by("shape", "layers"), presets=PRESETS)

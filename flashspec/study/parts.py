"""What a piece of a round costs at published or made-up shapes, with random weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.heads.base import Norm
from flashspec.heads.candidates import PreviewHead, ShortlistHead, sizes
from flashspec.heads.cluster import Clusters
from flashspec.heads.flash import FlashHead
from flashspec.heads.registry import HEADS, RANKED, VARIANTS, Origin, head_named
from flashspec.kernels import Packed
from flashspec.measure import clock
from flashspec.measure.parts import Bench, held
from flashspec.measure.runs import stored_bytes
from flashspec.models.config import ModelConfig
from flashspec.models.folder import PAIRS, published
from flashspec.models.gguf import config_of as gguf_config
from flashspec.models.gguf import opened
from flashspec.models.memory import device_named
from flashspec.models.synthetic import random_rows, reshaped, shape, synthetic
from flashspec.models.transformer import Transformer
from flashspec.parameters import presets_of
from flashspec.study.experiment import Experiment, by
from flashspec.study.racers import dtype_of, format_of, options_of
from flashspec.typed import among, at_least

PIECES = ("projection", "step", "body", "head", "burst", "check")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int4": torch.bfloat16}
FILES = {name if role == "target" else f"{name}-{role}": (name, role) for name, pair in PAIRS.items() for role in pair}
OWN = "auto"  # the format of a published model's file
BARE = re.compile(r"(\d+)x(\d+)", re.ASCII)  # IDSxWIDTH, a shape that is a vocabulary projection alone
CLUSTER = 16  # ids of a cluster
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
        among(self, piece=PIECES, head=[name for name in HEADS if name != RANKED[1]], format=(*DTYPES, OWN))
        at_least(self, layers=0, spread=1, probes=1, shortlist=1, rows=1, k=1, past=1, cold_megabytes=0, repeats=1)
        for name in self.shape:
            if (name in FILES) != (self.format == (OWN,)):
                raise ValueError(f"format {OWN} is that of the models {', '.join(FILES)}; got shape {name!r}, {self.format}")
            if name not in FILES:
                config_of(name, 0, 1)
            if BARE.fullmatch(name) and set(self.piece) != {"projection"}:
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
    speed, pieces = (
        clock.roof(str(device_named(params.device))),
        [piece for config in configs for piece in pieces_of(config, params)],
    )
    for megabytes in dict.fromkeys((params.cold_megabytes, 0)):
        chosen = [piece for piece in pieces if piece.facts.get("cold_megabytes", 0) == megabytes]
        lines = timed(chosen, params.repeats, 2, params.device, megabytes)
        yield from (Row(**facts, bandwidth=speed) for facts in lines)


def timed(pieces: Sequence[Piece], repeats: int, warmup: int, device: str, megabytes: int = 0) -> Iterator[dict[str, Any]]:
    """The columns of every turn of every piece, all of them in turns."""
    calls = {str(number): piece.call for number, piece in enumerate(pieces)}
    raw = clock.interleaved_seconds(calls, repeats, warmup, device, megabytes)
    for piece, seconds in zip(pieces, raw.values(), strict=True):
        yield from ({**piece.facts, "device": device, "seconds": s, "turn": turn} for turn, s in enumerate(seconds))


def config_of(name: str, layers: int, spread: int) -> ModelConfig:
    """A shape's configuration with these layers (0: its own), spread over fewer; IDSxWIDTH has one layer."""
    if name in FILES:
        return gguf_config(opened(published(*FILES[name])))
    if found := BARE.fullmatch(name):
        ids, width = map(int, found.groups())
        return replace(shape("reference-draft"), vocab_size=ids, hidden=width, layers=1)
    whole = shape(name, layers or None)
    return reshaped(whole, max(1, whole.layers // spread)) if spread > 1 else whole


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
        yield Piece({**facts, **named, **cold}, partial(best, head, cycle(rows.split(1)).__next__))


def _reads(model: Transformer, facts: dict[str, Any], params: Params, form: str) -> Iterator[Piece]:
    """Steps, bodies, heads and bursts of a draft, and checks of a target, of this model."""

    def after(rows: int, **changes: Any) -> Bench:
        """The model after the past and `rows` tokens more."""
        ids = [i % model.config.vocab_size for i in range(params.past + rows)]
        (stage,) = build(Method(), Models(model), context=len(ids) + max(params.k) + 1)
        return held([stage._replace(**changes)], ids)

    layers, draft = stored_bytes(model.layers), after(1)
    dense = {"head": "dense", "format": form, "rows_scored": model.config.vocab_size}
    if "body" in params.piece:
        yield Piece({**facts, **dense, "piece": "body", "bytes": layers}, draft.read)
    for named, head in heads_over(Origin(model.vocabulary, model.norm), params):
        once = layers + head.bytes_read(1)
        if "step" in params.piece:
            yield Piece({**facts, **named, "piece": "step", "bytes": once}, partial(best, head, draft.read))
        if "head" in params.piece:
            call = partial(best, head, cycle([draft.read().clone()]).__next__)
            yield Piece({**facts, **named, "piece": "head", "bytes": head.bytes_read(1)}, call)
        for k in params.k if "burst" in params.piece else ():
            burst = after(1, head=head, every=k).burst
            yield Piece({**facts, **named, "piece": "burst", "k": k, "bytes": k * once}, burst)
    head = draft.stages[0].head
    for rows in params.rows if "check" in params.piece else ():
        size = layers + head.bytes_read(rows)
        call = partial(best, head, partial(after(rows).read, rows))
        yield Piece({**facts, **dense, "piece": "check", "rows": rows, "bytes": size}, call)


def heads_over(origin: Origin, params: Params) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every head at every setting that fits the vocabulary, untrained, and the columns that describe it."""
    ids, dtype = origin.weight.shape[0], dtype_of(origin.weight)
    flash = functools.cache(partial(stand_in_flash, origin.weight, origin.norm, params.seed))
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


def stand_in_flash(weight: Tensor | Packed, norm: Norm | None, seed: int = 0) -> FlashHead:
    """A FlashHead of one probe over seeded arbitrary clusters: the cost of a trained one, without its quality."""
    (vocab, width), dice = weight.shape, torch.Generator().manual_seed(seed)
    count = -(-vocab // CLUSTER)
    assignments = torch.randperm(count * CLUSTER, generator=dice)[:vocab] // CLUSTER
    places, centroids = (part.to(weight.device) for part in (assignments, random_rows(count, width, seed=seed)))
    return FlashHead.build(weight, norm, Clusters(places, CLUSTER, centroids), probes=1)


def stand_in_preview(weight: Tensor, norm: Norm | None = None) -> PreviewHead:
    """A preview head of the default size with arbitrary directions: nothing is decomposed."""
    vocab, width = weight.shape
    rank, candidates = sizes(vocab, width)
    basis, preview = (random_rows(count, size, weight.dtype) for count, size in ((rank, width), (vocab, rank)))
    return PreviewHead(norm, weight, candidates, basis.to(weight.device), preview.to(weight.device))


def best(head: Any, rows: Callable[[], Tensor]) -> Tensor:
    """The best token after each of the rows that a call gives."""
    scores = head(rows())
    return scores.pick(scores.logits.argmax(-1))


SPLIT = by("shape", "layers")
EXPERIMENT = Experiment("parts", Params, Row, measure, split=SPLIT, presets=presets_of("parts", Params))

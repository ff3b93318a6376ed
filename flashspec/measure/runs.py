"""A decode against the clock, timed from outside; everything else is counted from its events afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from flashspec.decoding.generate import agreement, count, request
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.measure import clock
from flashspec.models.reader import SpanReader
from flashspec.sampling import Sampling

Text = tuple[int, ...]


class Entry(NamedTuple):
    """A contestant: a method under a sampling, with a name of its own."""

    name: str
    method: Method
    sampling: Sampling


class Run(NamedTuple):
    """One timed decode: wall seconds, tokens, and counts: Stats, Score, and those of the two lowest verifiers."""

    seconds: float
    tokens: Text
    counts: dict[str, int]


def timed(models: Models, entry: Entry, prompt: Sequence[int], new_tokens: int) -> Run:
    """One decode whatever the stop tokens, its set-up inside the timed region."""
    tokens, events = list[int](), list[Event]()
    start = clock.now()
    ready = request(models, list(prompt), entry.method, entry.sampling, {"max_new_tokens": new_tokens, "stop": ()})
    for step in ready.steps():
        tokens += step.tokens
        events += step.events
    seconds, stages = clock.now() - start, len(ready.stages)
    found = score(events, ready.stages, len(tokens), len(prompt) + len(tokens) // 2)
    counts = {**vars(count(events, len(tokens), stages)), **found._asdict()}
    for level in range(1, min(stages, 3)):
        actions = [event for event in events if event.stage == level and event.adds]
        waiting, (kept, decided) = sum(event.waiting for event in actions), agreement(actions, level)
        numbers = {"actions": len(actions), "waiting": waiting, "kept": kept, "decided": decided}
        counts |= {f"{name}_{level}": number for name, number in numbers.items()}
    return Run(seconds, tuple(tokens), counts)


def text_digest(tokens: Iterable[int]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the token ids, joined by commas."""
    return hashlib.sha256(",".join(str(int(t)) for t in tokens).encode()).hexdigest()[:12]


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of the n-grams of a text that were in it before; 0 where the text has none."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes that one pass over these modules reads: parameters and persistent buffers, each storage once."""
    values = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
    return sum({value.data_ptr(): value.nbytes for value in values if isinstance(value, Tensor)}.values())


class Score(NamedTuple):
    """Whole numbers of a decode; rates per final token are computed where they are read.

    `forwards` are passes of the last stage, `layer_tokens` tokens times layers over all stages; a multiply-add is 2 flops.
    """

    forwards: int
    layer_tokens: int
    bytes: int
    flops: int
    emitted: int


def score(events: Sequence[Event], stages: Sequence[Stage], emitted: int, past: int = 0) -> Score:
    """Score of one decode; `past` is the mean number of tokens in the caches."""
    forwards = layer_tokens = traffic = flops = 0
    for event in events:
        stage = stages[event.stage]
        for size, products in (_body(stage, event, past), _head(stage, event)):
            traffic, flops = traffic + size, flops + products
        forwards += passes(event) if event.stage == len(stages) - 1 else 0
        layer_tokens += event.rows * getattr(stage.reader, "layers", 0)
    return Score(forwards, layer_tokens, traffic, flops, emitted)


def passes(event: Event) -> int:
    """Passes of one action: a writer reads once for each token it adds, any other action reads once."""
    return max(event.adds, 1) if event.rows else 0


def _body(stage: Stage, event: Event, past: int) -> tuple[int, int]:
    """Bytes and FLOPs of the layers: weights and past once a pass, new keys and values twice."""
    reader, rows = stage.reader, event.rows
    if not isinstance(reader, SpanReader) or not rows:
        return 0, 0
    config = reader.model.config
    share = reader.layers / config.layers
    cached = config.kv_bytes_per_token(reader.rows.element_size()) * (past * passes(event) + 2 * rows)
    attended = rows * past + rows * (rows + 1) // 2
    attention = 4 * config.layers * config.heads * config.head_dim * attended
    flops = 2 * rows * config.body_parameters + attention
    return stored_bytes(*reader.blocks) * passes(event) + int(share * cached), int(share * flops)


def _head(stage: Stage, event: Event) -> tuple[int, int]:
    """Of the head: a writer projects a row a token, a verifier those that wait and one more."""
    calls, rows = (event.adds, 1) if event.stage == 0 else (min(event.adds, 1), event.waiting + 1)
    products = getattr(stage.head, "rows_scored", 0) * getattr(stage.head, "hidden", 0)
    return calls * stage.head.bytes_read(rows), 2 * calls * rows * products

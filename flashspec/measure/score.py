"""Machine-independent scores of a decode: forwards, layer-tokens, bytes and FLOPs, derived from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.measure.roofline import Work, body_work, stored_bytes
from flashspec.models.reader import SpanReader


@dataclass(frozen=True)
class Score:
    """Whole numbers of one or more decodes; rates per final token are computed where they are read.

    `forwards` are reads by the last stage, `layer_tokens` tokens times layers passed, over all stages.
    """

    forwards: int = 0
    layer_tokens: int = 0
    bytes: int = 0
    flops: int = 0
    emitted: int = 0

    def __add__(self, other: Score) -> Score:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Score(*(a + b for a, b in pairs))


def score(events: Sequence[Event], stages: list[Stage], emitted: int, past: int = 0) -> Score:
    """Score of one decode; `past` is the mean number of tokens in the caches, which sets the key/value traffic."""
    last = len(stages) - 1
    work = sum((event_work(event, stages[event.stage], past) for event in events), Work())
    forwards = sum(forwards_of(event) for event in events if event.stage == last)
    layer_tokens = sum(event.rows * _layers(stages[event.stage]) for event in events)
    return Score(forwards, layer_tokens, work.bytes, work.flops, emitted)


def forwards_of(event: Event) -> int:
    """Passes of one action: a writer reads once for each token it adds, any other action reads once."""
    return max(event.adds, 1) if event.rows else 0


def event_work(event: Event, stage: Stage, past: int) -> Work:
    """Traffic and arithmetic of one action: weights once a pass, the past's keys and values once a pass, then the head."""
    passes = forwards_of(event)
    return _body(stage, event.rows, passes, past) + _head(stage, event)


def _body(stage: Stage, rows: int, passes: int, past: int) -> Work:
    reader = stage.reader
    if not isinstance(reader, SpanReader) or not passes:
        return Work()
    span = reader.model.layers[reader.start : reader.stop]
    share = reader.layers / reader.model.config.layers
    free = body_work(reader.model.config, rows, past, itemsize=0, cached=reader.rows.element_size())
    again = body_work(reader.model.config, 0, past, itemsize=0, cached=reader.rows.element_size())
    cache = int(share * (free.bytes + again.bytes * (passes - 1)))
    return Work(stored_bytes(span) * passes + cache, int(share * free.flops))


def _head(stage: Stage, event: Event) -> Work:
    """A writer projects one row a token, a verifier all waiting rows and one more at once, a mere read nothing."""
    if not event.adds:
        return Work()
    calls, rows = (event.adds, 1) if event.stage == 0 else (1, event.waiting + 1)
    return Work(calls * stage.head.bytes_read(rows), 2 * calls * rows * _products(stage.head))


def _products(head: object) -> int:
    """Multiplications for one row."""
    return getattr(head, "rows_scored", 0) * getattr(head, "hidden", 0)


def _layers(stage: Stage) -> int:
    return getattr(stage.reader, "layers", 0)

"""What a decode must cost whatever the machine (passes, bytes, operations), and how fast the machine reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.measure import clock
from flashspec.models.reader import SpanReader


def roof(device: str, megabytes: int = 1024) -> float:
    """Bytes a second at which the device reads memory larger than its caches: the best of several sums."""
    block = torch.ones((megabytes if device != "cpu" else 64) << 18, device=device)
    seconds = [clock.seconds_of(block.sum, device) for _ in range(8)]
    return block.nbytes / min(seconds)


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes that one pass over these modules reads: parameters and persistent buffers, each storage once."""
    values = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
    return sum({value.data_ptr(): value.nbytes for value in values if isinstance(value, Tensor)}.values())


class Score(NamedTuple):
    """Whole numbers of a decode; rates per final token are computed where they are read.

    `forwards` are passes of the last stage, `layer_tokens` tokens times layers passed, over all stages; a multiply-add is two
    `flops`.
    """

    forwards: int
    layer_tokens: int
    bytes: int
    flops: int
    emitted: int


def score(events: Sequence[Event], stages: Sequence[Stage], emitted: int, past: int = 0) -> Score:
    """Score of one decode; `past` is the mean number of tokens in the caches, which sets the key/value traffic."""
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
    """Bytes and FLOPs of the layers: weights and the past's keys and values once a pass, those of new rows written and read."""
    reader, rows = stage.reader, event.rows
    if not isinstance(reader, SpanReader) or not rows:
        return 0, 0
    config, span = reader.model.config, reader.model.layers[reader.start : reader.stop]
    share = reader.layers / config.layers
    cached = config.kv_bytes_per_token(reader.rows.element_size()) * (past * passes(event) + 2 * rows)
    attended = rows * past + rows * (rows + 1) // 2
    attention = 4 * config.layers * config.heads * config.head_dim * attended
    flops = 2 * rows * config.body_parameters + attention
    return stored_bytes(span) * passes(event) + int(share * cached), int(share * flops)


def _head(stage: Stage, event: Event) -> tuple[int, int]:
    """A writer projects one row a token, a verifier all waiting rows and one more at once, a mere read nothing."""
    calls, rows = (event.adds, 1) if event.stage == 0 else (min(event.adds, 1), event.waiting + 1)
    products = getattr(stage.head, "rows_scored", 0) * getattr(stage.head, "hidden", 0)
    return calls * stage.head.bytes_read(rows), 2 * calls * rows * products

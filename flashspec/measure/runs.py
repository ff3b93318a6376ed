"""A decode against the clock, timed from outside; everything else is counted from its events afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from flashspec.decoding.cascade import Event
from flashspec.decoding.generate import agreement, count, request
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.measure import clock
from flashspec.models.reader import SpanReader
from flashspec.sampling import Sampling

Text = tuple[int, ...]


class Run(NamedTuple):
    """One timed decode: wall seconds, tokens, and counts: Stats, and those of the two lowest verifiers."""

    seconds: float
    tokens: Text
    counts: dict[str, int]


def timed(models: Models, method: Method, sampling: Sampling, prompt: Sequence[int], new_tokens: int) -> Run:
    """One decode that ignores stop tokens; its set-up is inside the timed region."""
    tokens, events = list[int](), list[Event]()
    start = clock.now()
    ready = request(models, list(prompt), method, sampling, {"max_new_tokens": new_tokens, "stop": ()})
    for step in ready.steps():
        tokens += step.tokens
        events += step.events
    seconds, stages = clock.now() - start, len(ready.stages)
    layers = [len(stage.reader.blocks) if isinstance(stage.reader, SpanReader) else 0 for stage in ready.stages]
    counts = {**vars(count(events, len(tokens), stages)), "layer_tokens": sum(e.rows * layers[e.stage] for e in events)}
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
    """Share of a text's n-grams that occurred in it before; 0 where the text has none."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes that one pass over these modules reads: parameters and persistent buffers, each storage once."""
    values = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
    return sum({value.data_ptr(): value.nbytes for value in values if isinstance(value, Tensor)}.values())

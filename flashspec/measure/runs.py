"""A decode against the clock, timed from outside; everything else is counted from its events afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashspec.decoding.generate import agreement, count, request
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.decoding.state import Event
from flashspec.measure import clock
from flashspec.measure.roofline import score
from flashspec.sampling import Sampling

Text = tuple[int, ...]


class Entry(NamedTuple):
    """A contestant: a method under a sampling, with a name of its own."""

    name: str
    method: Method
    sampling: Sampling


class Run(NamedTuple):
    """One timed decode: wall seconds, tokens, and counts by column (Stats, Score, and the two lowest levels' `Verified`)."""

    seconds: float
    tokens: Text
    counts: dict[str, int]


class Verified(NamedTuple):
    """Whole numbers of one level: actions, tokens that waited, tokens it accepted, and tokens it decided about."""

    actions: int
    waiting: int
    kept: int
    decided: int


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
        counts |= {f"{name}_{level}": value for name, value in verified(events, level)._asdict().items()}
    return Run(seconds, tuple(tokens), counts)


def verified(events: Sequence[Event], stage: int) -> Verified:
    """What one stage verified in a decode."""
    mine = [e for e in events if e.stage == stage and e.adds]
    return Verified(len(mine), sum(e.waiting for e in mine), *agreement(mine, stage))


def text_digest(tokens: Iterable[int]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the token ids, joined by commas."""
    return hashlib.sha256(",".join(str(int(t)) for t in tokens).encode()).hexdigest()[:12]


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of the n-grams of a text that were in it before; 0 where the text has none."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

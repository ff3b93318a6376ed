"""Generators timed from outside, and what is kept of the texts they write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from flashspec.measure import clock

Contestant = Callable[[], Iterable[int]]
Text = tuple[int, ...]


def text_digest(tokens: Iterable[int]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the token ids, joined by commas."""
    return hashlib.sha256(",".join(str(int(t)) for t in tokens).encode()).hexdigest()[:12]


def time_run(contestant: Contestant) -> tuple[float, Text]:
    """Wall seconds from asking for the generator to its last token, and its tokens."""
    clock.settle()
    start = clock.now()
    tokens = tuple(contestant())
    return clock.now() - start, tokens

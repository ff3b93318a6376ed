"""Readers: a span of one model's layers that knows how far it has read, and forgets by one integer."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from flashspec.model.engine import engine_for
from flashspec.model.transformer import Transformer


class Reader(Protocol):
    """Anything that turns tokens into hidden rows; row j speaks for token j + 1."""

    seen: int
    context: int
    rows_read: int

    @property
    def rows(self) -> Tensor:
        """Hidden rows by position [context, hidden], before the final norm; valid below `seen`."""

    def read(self, tokens: Tensor) -> Tensor:
        """Read what is missing of tokens [n]; return the rows of all n."""

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""


class SpanReader:
    """Reads tokens through layers start..stop of a model, or the rows of the reader below it.

    The cache is allocated once; rewinding moves one integer, and stale entries are overwritten before they are read.
    `rows_read` counts the rows computed since the reader was made.
    """

    def __init__(
        self, model: Transformer, stop: int | None = None, below: SpanReader | None = None, context: int | None = None
    ) -> None:
        self.model, self.below = model, below
        self.stop: int = model.config.layers if stop is None else stop
        self.start = below.stop if below else 0
        self.context = min(model.config.context, context or model.config.context)
        self.seen = self.rows_read = 0
        if not self.start < self.stop <= model.config.layers:
            raise ValueError(f"a span must end between layer {self.start + 1} and {model.config.layers}, got {self.stop}")
        self.engine = engine_for(model, self.start, self.stop, self.context)
        self._rows = torch.zeros(self.context, model.config.hidden, dtype=self.engine.row_dtype, device=model.embed.weight.device)

    @property
    def layers(self) -> int:
        """Layers a token passes in this span."""
        return self.stop - self.start

    @property
    def rows(self) -> Tensor:
        """Hidden rows by position [context, hidden]; valid below `seen`."""
        return self._rows

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Read what is missing of tokens [n] (int64, on the model's device); rows [n, hidden] of all of them."""
        n = len(tokens)
        if n > self.context:
            raise ValueError(f"{n} tokens do not fit the context of {self.context}; shorten the prompt or max_new_tokens")
        if n > self.seen:
            fresh = self._input(tokens)
            self._rows[self.seen : n] = self.engine.run(fresh, self.seen)
            self.rows_read += n - self.seen
            self.seen = n
        return self._rows[:n]

    def _input(self, tokens: Tensor) -> Tensor:
        """What the first layer of the span takes: embeddings, or the rows below."""
        if self.below is None:
            return self.engine.embed(tokens[self.seen :])
        return self.below.read(tokens)[self.seen :].clone()

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.seen = min(self.seen, n)

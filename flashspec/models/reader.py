"""Readers: a span of one model's layers that knows how far it has read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flashspec.models.engine import Engine, FixedEngine, KernelEngine, TorchEngine, choice, kernel_ready
from flashspec.models.transformer import Layer, Transformer

Reads = tuple[int, ...]


class Reader(ABC):
    """Turns tokens into hidden rows by position [context, width], before the final norm; valid below `seen`.

    Row j predicts token j + 1. `below` is the reader whose rows it continues from, `text` marks the last decode that used it.
    """

    below: Reader | None = None
    text: Tensor | None = None

    def __init__(self, context: int, rows: Tensor) -> None:
        self.context, self.rows, self.seen = context, rows, 0

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Reads:
        """Read the unread part of tokens [n], on the model's device; returns how many, lower readers first."""
        lower, n = self.lower(tokens), len(tokens)
        if n > self.seen:
            self.rows[self.seen : n] = self._fresh(tokens)
        return (*lower, self.advance(n))

    def lower(self, tokens: Tensor) -> Reads:
        """Let the readers below read tokens [n]; ValueError for more tokens than the context holds."""
        self.fits(tokens)
        return () if self.below is None else self.below.read(tokens)

    def fits(self, tokens: Tensor) -> None:
        """ValueError for more tokens than the context holds."""
        if (n := len(tokens)) > self.context:
            raise ValueError(f"{n} tokens do not fit the context of {self.context}; shorten the prompt or max_new_tokens")

    def advance(self, n: int) -> int:
        """Count the first n tokens as read; returns how many of them are new."""
        new = max(0, n - self.seen)
        self.seen += new
        return new

    @abstractmethod
    def _fresh(self, tokens: Tensor) -> Tensor:
        """Rows [n - seen, width] of the unread tokens."""

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.seen = min(self.seen, n)


class SpanReader(Reader):
    """Reads tokens, or the rows of the reader below it, through layers start..stop of a model.

    Rewinding changes one integer: stale entries of the cache are overwritten before they are read. A `last` layer, an exit's
    own, follows the span; the reader above continues from `trunk`, the rows before it.
    """

    below: SpanReader | None

    def __init__(
        self,
        model: Transformer,
        stop: int | None = None,
        below: SpanReader | None = None,
        context: int | None = None,
        last: Layer | None = None,
    ) -> None:
        self.model, self.below = model, below
        self.stop: int = model.config.layers if stop is None else stop
        self.start = below.stop if below else 0
        room = min(model.config.context, context or model.config.context)
        if not self.start < self.stop <= model.config.layers:
            raise ValueError(f"a span must end between layer {self.start + 1} and {model.config.layers}, got {self.stop}")
        if last is not None:
            self.model = model.with_layers(nn.ModuleList([*model.layers[: self.stop], last]))
        self.blocks = self.model.blocks[self.start : self.stop + (last is not None)]
        self.engine = engine_for(self.model, self.start, self.start + len(self.blocks), room)
        rows = torch.zeros(room, model.config.hidden, dtype=self.engine.row_dtype, device=model.embed.weight.device)
        super().__init__(room, rows)
        self.trunk = rows if last is None else self.engine.keep(len(self.blocks) - 1)

    def _fresh(self, tokens: Tensor) -> Tensor:
        return self.engine.run(self.entering(tokens), self.seen)

    def entering(self, tokens: Tensor) -> Tensor:
        """Rows [n - seen, hidden] of the unread tokens as they come into the span."""
        new = slice(self.seen, len(tokens))
        if self.below is None:
            return self.model.embed(tokens[new]).to(self.rows.dtype)
        return self.below.trunk[new].clone()


@torch.inference_mode()
def read_together(readers: Sequence[Reader], texts: Sequence[Tensor]) -> list[Reads]:
    """What `read` of each reader does with its own text [n]: in one pass over the weights, where the kernels compute it."""
    own = [each for each in readers if type(each) is SpanReader and isinstance(each.engine, KernelEngine)]
    engines = [cast(KernelEngine, reader.engine) for reader in own]
    kinds = {(*map(id, engine.layers), engine.context) for engine in engines}
    if len(readers) == 1 or len(own) < len(readers) or len(kinds) > 1:
        return [reader.read(text) for reader, text in zip(readers, texts, strict=True)]
    below = [reader.below for reader in own if reader.below is not None]
    lower = read_together(below, texts) if below else [()] * len(own)
    new, entering = list[range](), list[Tensor]()
    for reader, text in zip(own, texts, strict=True):
        reader.fits(text)
        new.append(range(reader.seen, max(reader.seen, len(text))))
        entering.append(reader.entering(text))
    numbers = torch.tensor([number for number, places in enumerate(new) for _ in places])
    positions = torch.tensor([position for places in new for position in places])
    rows = torch.cat(entering)
    rows = engines[0].run_together(engines[1:], rows, numbers, positions) if len(rows) else rows
    for reader, places, found in zip(own, new, rows.split([*map(len, new)]), strict=True):
        reader.rows[places.start : places.stop] = found
    return [(*under, reader.advance(places.stop)) for under, reader, places in zip(lower, own, new, strict=True)]


def engine_for(model: Transformer, start: int, stop: int, context: int) -> Engine:
    """The fastest engine for layers start..stop of this model on its device."""
    kind: Callable[..., Engine] = KernelEngine if kernel_ready(model) else TorchEngine
    return (kind if choice(model.device) == "0" else FixedEngine)(model, start, stop, context)

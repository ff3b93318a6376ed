"""Pieces of a round ready to be timed, on models of any shape: a reader behind a past, a burst from there on, a check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import rule_for
from flashspec.decoding.stages import Stage
from flashspec.decoding.ways import fastest
from flashspec.heads.base import Head
from flashspec.heads.dense import DenseHead
from flashspec.models import graphs
from flashspec.models.reader import SpanReader
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY, Dice


@contextmanager
def flag(value: str) -> Iterator[None]:
    """FLASHSPEC_GRAPHS set for a while."""
    before = os.environ.get(graphs.FLAG)
    os.environ[graphs.FLAG] = value
    try:
        yield
    finally:
        os.environ.pop(graphs.FLAG)
        if before is not None:
            os.environ[graphs.FLAG] = before


def one_token(head: Head, row: Tensor) -> Tensor:
    """The best token of one row."""
    scores = head(row, torch.zeros(1, dtype=torch.int64), Dice(0))
    return scores.pick(scores.logits.argmax(-1))


class Ready(NamedTuple):
    """A reader behind a past, with one token pending."""

    reader: SpanReader
    tokens: Tensor

    def read(self, rows: int) -> Tensor:
        """Rows of the last `rows` tokens, read anew behind the past."""
        count = len(self.tokens) - rows
        self.reader.rewind(count)
        self.reader.read(self.tokens)
        return self.reader.rows[count : len(self.tokens)]


def ready(model: Transformer, past: int, k: int, rows: int = 1) -> Ready:
    """A reader of this model behind `past` tokens, with room for a burst of k."""
    tokens = torch.arange(past + rows, device=model.device) % model.config.vocab_size
    made = Ready(SpanReader(model, context=past + rows + k + 1), tokens)
    made.reader.read(tokens[:past])
    return made


def checked(head: DenseHead, target: Ready, rows: int) -> object:
    """The target's best ids after reading `rows` tokens."""
    return head(target.read(rows)).logits.argmax(-1)


class Ahead:
    """Tokens drafted one after another behind a past, greedily, and forgotten."""

    def __init__(self, draft: Ready, head: Head, count: int) -> None:
        stage = Stage(draft.reader, head, rule_for(GREEDY, head.vocab_size), way=fastest)
        self.reader, self.write = draft.reader, stage.write
        self.start, self.count = len(draft.tokens), count
        self.tokens = torch.cat((draft.tokens, draft.tokens.new_zeros(count)))

    def __call__(self) -> object:
        self.reader.rewind(self.start - 1)
        return self.write(self.tokens, self.start, self.count)

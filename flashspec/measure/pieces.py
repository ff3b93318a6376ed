"""Pieces of a round ready to be timed, and heads with random weights: true costs, meaningless quality."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flashspec.decoding.rules import rule_for
from flashspec.decoding.stages import Stage
from flashspec.decoding.ways import fastest
from flashspec.heads.base import DenseHead, Head, Norm
from flashspec.heads.candidates import PreviewHead, sizes
from flashspec.heads.cluster import Clusters
from flashspec.heads.flash import FlashHead
from flashspec.kernels import Packed
from flashspec.models import graphs
from flashspec.models.reader import SpanReader
from flashspec.models.synthetic import random_rows
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY


@contextmanager
def flag(value: str) -> Iterator[None]:
    """Set FLASHSPEC_GRAPHS inside the block."""
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
    scores = head(row)
    return scores.pick(scores.logits.argmax(-1))


class Ready:
    """A reader of a model after `past` tokens, with `rows` tokens pending and room for a burst of k."""

    def __init__(self, model: Transformer, past: int, k: int, rows: int = 1) -> None:
        self.tokens = torch.arange(past + rows, device=model.device) % model.config.vocab_size
        self.reader = SpanReader(model, context=past + rows + k + 1)
        self.reader.read(self.tokens[:past])

    def read(self, rows: int) -> Tensor:
        """Rows of the last `rows` tokens, read again after the past."""
        count = len(self.tokens) - rows
        self.reader.rewind(count)
        self.reader.read(self.tokens)
        return self.reader.rows[count : len(self.tokens)]


def checked(head: DenseHead, target: Ready, rows: int) -> object:
    """The target's best ids after reading `rows` tokens."""
    return head(target.read(rows)).logits.argmax(-1)


class Ahead:
    """Tokens drafted one by one after a past, greedily, and then forgotten."""

    def __init__(self, draft: Ready, head: Head, count: int) -> None:
        stage = Stage(draft.reader, head, rule_for(GREEDY, head.vocab_size), way=fastest)
        self.reader, self.write = draft.reader, stage.write
        self.start, self.count = len(draft.tokens), count
        self.tokens = torch.cat((draft.tokens, draft.tokens.new_zeros(count)))

    def __call__(self) -> object:
        self.reader.rewind(self.start - 1)
        return self.write(self.tokens, self.start, self.count)


def stand_in_flash(weight: Tensor | Packed, norm: Norm | None, probes: int, cluster_size: int = 16, seed: int = 0) -> FlashHead:
    """A FlashHead over seeded arbitrary clusters: the cost of a trained one, without its quality."""
    vocab, width = weight.shape
    count = -(-vocab // cluster_size)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    assignments = torch.empty(vocab, dtype=torch.int64).scatter_(0, order, torch.arange(vocab) // cluster_size)
    place = weight.device
    clusters = Clusters(assignments.to(place), cluster_size, random_rows(count, width, seed=seed).to(place))
    return FlashHead.build(weight, norm, clusters, probes=probes)


def low_rank_rows(vocab: int, width: int, rank: int, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Seeded weight [vocab, width], float32: products of rank `rank` plus noise of `noise` times their size.

    As in trained weights, many rows share directions that they can be clustered by.
    """
    if rank > width:
        raise ValueError(f"rank must be at most the width {width}, got {rank}")
    dice = torch.Generator().manual_seed(seed)
    rows, directions = torch.randn(vocab, rank, generator=dice), torch.randn(rank, width, generator=dice)
    return torch.randn(vocab, width, generator=dice).mul_(noise).addmm_(rows, directions, alpha=rank**-0.5)


def stand_in_preview(weight: Tensor, norm: Norm | None = None) -> PreviewHead:
    """A preview head of the default size with arbitrary directions: nothing is decomposed."""
    vocab, width = weight.shape
    rank, candidates = sizes(vocab, width)
    basis, preview = (random_rows(count, size, weight.dtype) for count, size in ((rank, width), (vocab, rank)))
    return PreviewHead(norm, weight, candidates, basis.to(weight.device), preview.to(weight.device))

"""What every vocabulary head promises, and the two products all of them are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.models.transformer import RMSNorm
from flashspec.sampling import Dice, Scores

Norm = Callable[[Tensor], Tensor]


class Head(Protocol):
    """Turns hidden rows, taken before the final norm, into scores over the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1."""

    def __call__(self, rows: Tensor, positions: Tensor, dice: Dice) -> Scores:
        """Scores of rows [n, hidden]; `positions` [n] and `dice` matter to heads that draw."""

    def bytes_read(self, rows: int) -> int:
        """Bytes of weights that scoring this many rows at once has to read."""

    def learn(self, tokens: Tensor, scores: Scores | None) -> None:
        """Take in tokens that became final and the last stage's scores behind them, None as a text begins; most heads do not."""


class Fixed:
    """A head whose scores follow from the row alone."""

    def learn(self, tokens: Tensor, scores: Scores | None) -> None:
        """Nothing."""


class WeightHead(Fixed):
    """What a head over one weight [vocab, hidden] answers alike; a head is a dataclass with these two fields and its own."""

    norm: Norm | None
    weight: Tensor | kernels.Packed

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1, whether or not a call scores them."""
        return self.weight.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the rows it reads."""
        return self.weight.shape[1]

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.vocab_size

    @cached_property
    def scoring(self) -> kernels.Scoring | None:
        """This head in one call of the compiled kernels, None where they do not serve it."""
        norm = kernel_norm(self.norm)
        return None if norm is None else kernels.scoring(*norm, self.weight)

    def scored(self, rows: Tensor) -> Scores | None:
        """Scores of rows [n, hidden] by the compiled kernels, None where they do not serve."""
        scoring = self.scoring
        return Scores(*scoring(rows)) if scoring is not None and scoring.serves(rows) else None

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Logits [n, vocab] of rows [n, hidden]; nothing is drawn."""
        return self.scored(rows) or Scores(None, project(self.states(rows), self.weight))

    def bytes_read(self, rows: int) -> int:
        """The weight, once, however many rows share the reading."""
        return self.weight.nbytes

    def states(self, rows: Tensor) -> Tensor:
        """Rows [n, hidden] behind the norm; ValueError in words where they have another shape."""
        check_rows(rows, self.hidden)
        return (self.norm or unchanged)(rows)


def kernel_norm(norm: Norm | None) -> tuple[kernels.Norm | None] | None:
    """A norm as the kernels take it, (None,) for none; None where it is one they do not know."""
    if isinstance(norm, FusedNorm):
        return (norm.norm,)
    return (None,) if norm is None or norm is unchanged else None


def unchanged(rows: Tensor) -> Tensor:
    """The norm of rows that are normalised already."""
    return rows


@dataclass(frozen=True)
class FusedNorm:
    """A norm of rows [n, hidden] as one kernel call."""

    norm: kernels.Norm

    def __call__(self, rows: Tensor) -> Tensor:
        return kernels.normalised(rows.to(self.norm.weight.dtype), self.norm)


def fused(norm: Norm | None) -> Norm:
    """The norm as one kernel call, where it is one of our models'; None leaves rows alone."""
    if not isinstance(norm, RMSNorm | nn.LayerNorm):
        return norm or unchanged
    bias = getattr(norm, "bias", None)
    return FusedNorm(kernels.Norm(_widened(norm.weight), norm.eps, None if bias is None else _widened(bias)))


def _widened(weight: Tensor) -> Tensor:
    """A norm's weight in float32, or in float64 where it is."""
    return (weight.detach() if weight.dtype is torch.float64 else weight.detach().float()).contiguous()


def weight_of(weight: Tensor) -> Tensor:
    """A head's weight [vocab, hidden], detached and contiguous; ValueError in words where it cannot be one."""
    if weight.ndim != 2:
        raise ValueError(f"a head weight has the shape [vocabulary, hidden width], got {list(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"a head weight is made of floating-point numbers, got {weight.dtype}; dequantise it first")
    return weight.detach().contiguous()


def check_rows(rows: Tensor, width: int) -> None:
    """Refuse hidden rows that are not [n, width]."""
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"this head reads rows of shape [n, {width}], got {list(rows.shape)}; use the head of the same model")


def check_count(name: str, count: int, most: int, of: str) -> int:
    """Refuse a count that does not lie between 1 and the `most` there are."""
    if not 1 <= count <= most:
        raise ValueError(f"{name} must lie between 1 and the {most} {of}, got {count}")
    return count


def project(states: Tensor, weight: Tensor | kernels.Packed) -> Tensor:
    """Logits [n, N] of states [n, D] against weight [N, D]: float32, or float64 where the weight is."""
    if isinstance(weight, kernels.Packed):
        return kernels.packed_linear(states, weight)
    return kernels.linear(widened(states, weight), weight)


def project_blocks(states: Tensor, blocks: Tensor, chosen: Tensor) -> Tensor:
    """Logits [n, P, size] of states [n, D] against the chosen [n, P] of blocks [C, size, D]."""
    return kernels.gather_linear(widened(states, blocks), blocks, chosen)


def rescore(states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Exact logits [n, m] of states [n, D] against the rows of weight [V, D] that ids [n, m] name, read where they lie."""
    return project_blocks(states, weight[:, None], ids)[:, :, 0]


def widened(states: Tensor, weight: Tensor) -> Tensor:
    """States in the type that products with this weight are computed in: float32, or float64 where the weight is."""
    return states.double() if weight.dtype is torch.float64 else states.float()

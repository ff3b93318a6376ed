"""Scores of candidate tokens, how they are warped, and random numbers that belong to positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.once import Once
from flashspec.typed import one_of, typed

RULES = ("coupling", "speculative", "typical")
USES = {"draw": 1, "accept": 2, "residual": 3, "gumbel": 5}
COLDEST = 1e-3  # logits divided by less leave float32
_HASHED: Once[tuple[int, torch.device], Tensor] = Once()


class Scores(NamedTuple):
    """Raw logits [n, m] of the ids [n, m] that a head scored; ids None means the complete vocabulary, in order.

    Unscored ids have probability zero. The second copy of an id in a row, and padding, carry the logit -inf.
    """

    ids: Tensor | None
    logits: Tensor

    def row(self, index: int) -> Scores:
        """One row, still two-dimensional."""
        return self.part(index, index + 1)

    def part(self, start: int, stop: int) -> Scores:
        """Rows `start` to `stop`."""
        return Scores(None if self.ids is None else self.ids[start:stop], self.logits[start:stop])

    def pick(self, columns: Tensor) -> Tensor:
        """Vocabulary ids [n] of the chosen columns [n]."""
        return columns if self.ids is None else self.ids.gather(1, columns[:, None])[:, 0]

    def dense(self, vocab_size: int) -> Tensor:
        """Probabilities [n, vocab_size]."""
        probs = self.logits.softmax(-1)
        if self.ids is None:
            return probs
        return probs.new_zeros(len(probs), vocab_size).scatter_add_(1, self.ids, probs)


@typed
@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    `rule` is "coupling" (Gumbel noise shared by all stages: same seed, same text, any exact method), "speculative" (Leviathan
    et al. 2023: more acceptance, same distribution) or "typical" (lossy, Cai et al. 2024).
    """

    temperature: float = 0.0  # temperature of sampling; 0 is greedy
    top_k: int = 0  # draw from the likeliest tokens only; 0 means all
    top_p: float = 1.0  # draw from the smallest set of this probability; 1 means all
    seed: int = 0  # seed of the random numbers; same seed, same text
    rule: str = "coupling"  # acceptance rule; typical is lossy

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or COLDEST <= self.temperature < math.inf):
            raise ValueError(f"temperature must be 0 (greedy) or at least {COLDEST}, and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}; 1 keeps every token")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or above, got {self.top_k}")
        one_of("rule", self.rule, RULES)


GREEDY = Sampling()


def warp(scores: Scores, sampling: Sampling) -> Scores:
    """Apply temperature, then top-k, then top-p, in transformers' order; returns a new value."""
    if sampling.temperature == 0:
        return scores
    logits = scores.logits if sampling.temperature == 1 else scores.logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p < 1:  # the smallest set of tokens whose probability reaches it, and always the best one
        ordered, order = logits.sort(dim=-1)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[..., -1].fill_(False)
        logits = logits.masked_fill(torch.zeros_like(below).scatter(-1, order, below), -math.inf)
    return Scores(scores.ids, logits)


def _mix64(x: Tensor) -> Tensor:
    """One step of splitmix64, a bijection on signed 64-bit numbers, which wrap."""
    x = x + _signed(0x9E3779B97F4A7C15, 64)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB, 64)
    return x ^ _shift(x, 31)


@lru_cache
def _mixed(seed: int) -> int:
    return int(_mix64(torch.tensor(_signed(seed, 64))))


def _signed(value: int, bits: int = 32) -> int:
    value = int(value) & ((1 << bits) - 1)
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _shift(x: Tensor, count: int, bits: int = 64) -> Tensor:
    """Logical right shift of signed integers."""
    return (x >> count) & ((1 << (bits - count)) - 1)


def _mix32(x: Tensor) -> Tensor:
    """Murmur3's finaliser on int32, wrapping as unsigned numbers do."""
    x = (x ^ _shift(x, 16, 32)) * _signed(0x85EBCA6B)
    x = (x ^ _shift(x, 13, 32)) * _signed(0xC2B2AE35)
    return x ^ _shift(x, 16, 32)


def hashed_ids(count: int, device: torch.device) -> Tensor:
    """First-round hash of the ids 0..count-1, int32; kept for the process, because recorded graphs read it."""

    def made() -> Tensor:
        return _mix32(torch.arange(1, count + 1, dtype=torch.int32, device=device) * _signed(0x9E3779B1))

    return _HASHED.made((count, device), made)


def _gumbel(hashed: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, from signed random integers; fine-grained where the noise is large."""
    share = hashed.float().add_(0.5).abs_().mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return share.neg_().log1p_().neg_().log_().neg_()


class Dice(NamedTuple):
    """Random numbers that are functions of (seed, position, ...), so no draw depends on earlier draws.

    They are made on the device of the positions, where a graph can record them.
    """

    seed: int

    def key(self, positions: Tensor, *uses: str, stage: int = 0) -> Tensor:
        """Signed 64-bit numbers [uses, n] for one draw of each use at each of the positions [n]."""
        mixed = _mix64(positions ^ _mixed(self.seed))
        return _mix64(torch.stack([mixed ^ (USES[use] << 16 | stage) for use in uses]))

    def hashed(self, scores: Scores | None, positions: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
        """Hashed ids [1 or n, m] of scores [n, m] (None: all ids) and the positions' keys [n], both int32, for `noise`."""
        table = hashed_ids(vocab_size, scores.logits.device if scores else torch.device("cpu"))
        ids = None if scores is None else scores.ids
        return table[None] if ids is None else table[ids], self.key(positions, "gumbel")[0].to(torch.int32)

    def gumbel(self, scores: Scores, positions: Tensor, vocab_size: int) -> Tensor:
        """Noise [n, m] for the ids of scores [n, m], at positions [n] that the host knows."""
        return self.noise(*self.hashed(scores, positions, vocab_size))

    @staticmethod
    def noise(hashed: Tensor, keys: Tensor) -> Tensor:
        """Noise [n, m] of hashed ids [1 or n, m] under keys [n], both int32."""
        fused = kernels.gumbel(hashed, keys)
        return _gumbel(_mix32(hashed ^ keys.to(hashed.device)[:, None])) if fused is None else fused

    def uniform(self, positions: Tensor, stage: int, *uses: str) -> Tensor:
        """Numbers [uses, n] in (0, 1), float64, for one stage's draws at positions [n]."""
        keys = self.key(positions, *uses, stage=stage)
        high, low = _shift(keys, 32).double(), (keys & 0xFFFFFFFF).double()
        return (high * 2.0**32 + low + 0.5) * 2.0**-64

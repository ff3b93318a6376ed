"""Closed forms of speculative decoding: tokens per check, time per round, and when a cheaper draft or head pays.

Letters: alpha is the acceptance rate of one drafted token, k the block (drafted tokens per check), TAR the tokens settled per
check, its own included. Times are in any one unit; rates are per that unit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

from flashspec.theory.checks import check_block, check_latency, check_positive, check_share


@dataclass(frozen=True)
class Costs:
    """The times of one round: `draft` per drafted token, `verify` per check, `finalize` and `overhead` per round.

    `draft` is a constant per token, or a function of the block that gives the whole burst; `verify` is a constant or a function
    of the block. `finalize` is the extra target pass of eager finalisation, `overhead` everything else.
    """

    draft: float | Callable[[int], float]
    verify: float | Callable[[int], float]
    finalize: float = 0.0
    overhead: float = 0.0

    def __post_init__(self) -> None:
        for name in ("draft", "verify", "finalize", "overhead"):
            if not callable(getattr(self, name)):
                check_latency(name, getattr(self, name))

    def burst(self, block: int) -> float:
        """Time of drafting `block` tokens."""
        return check_latency("draft", self.draft(block) if callable(self.draft) else block * self.draft)

    def check(self, block: int) -> float:
        """Time of one check of `block` drafted tokens."""
        return check_latency("verify", self.verify(block) if callable(self.verify) else self.verify)


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class BreakEven(NamedTuple):
    """What one change alone would have to reach for speculation to be as fast as plain decoding.

    The alpha (None: no alpha is enough), the tokens per check, the longest draft step (None: not even a free draft pays).
    """

    acceptance: float | None
    tar: float
    draft: float | None


def tokens_per_check(alpha: float, block: int) -> float:
    """Expected TAR, (1 - alpha^(k+1)) / (1 - alpha) (Leviathan et al. 2023, equation 1)."""
    check_share("alpha", alpha), check_block(block)
    return block + 1.0 if alpha == 1.0 else (1.0 - alpha ** (block + 1)) / (1.0 - alpha)


def tokens_from_curve(curve: Sequence[float]) -> float:
    """Expected TAR where position i is accepted with probability curve[i] given all before: 1 + sum_i prod_{j <= i} curve[j].

    A constant curve gives `tokens_per_check`.
    """
    for position, alpha in enumerate(curve):
        check_share(f"acceptance at position {position}", alpha)
    return 1.0 + sum(accumulate(curve, mul))


def round_parts(costs: Costs, block: int) -> dict[str, float]:
    """The time ledger of one round: draft, verify, finalize, overhead."""
    check_block(block)
    return {"draft": costs.burst(block), "verify": costs.check(block), "finalize": costs.finalize, "overhead": costs.overhead}


def round_time(costs: Costs, block: int) -> float:
    """Time of one round, the denominator of the throughput model of Yan et al. 2024 (section 3)."""
    return sum(round_parts(costs, block).values())


def throughput(tar: float, costs: Costs, block: int) -> float:
    """Tokens per unit of time, TAR / (k t_draft + t_verify(k) + ...) (Yan et al. 2024, section 3)."""
    if not 1.0 <= tar <= block + 1.0:
        raise ValueError(f"TAR counts the correction or bonus token, so it lies in [1, {block + 1}], got {tar}")
    return tar / check_positive("round time", round_time(costs, block))


def speedup(tar: float, costs: Costs, block: int, step: float) -> float:
    """Speculation over plain decoding: step TAR / round time (Leviathan et al. 2023, theorem 3.8)."""
    return check_positive("baseline step", step) * throughput(tar, costs, block)


def break_even(tar: float, costs: Costs, block: int, step: float) -> BreakEven:
    """What it would take, one change at a time, for speculation to break even with plain decoding.

    The acceptance solves tokens_per_check(alpha, k) = round time / step (Leviathan et al. 2023, corollary 3.9).
    """
    whole = round_time(costs, block)
    needed = whole / check_positive("baseline step", step)
    draft = (step * tar - (whole - costs.burst(block))) / block
    acceptance = None if needed > block + 1 else acceptance_for(needed, block)
    return BreakEven(acceptance, needed, draft if draft >= 0.0 else None)


def acceptance_for(tar: float, block: int) -> float:
    """The alpha at which a check of `block` drafted tokens settles `tar`; 0 for at most one, 1 for all."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_check(middle, block) < tar else (low, middle)
    return high if tar > 1.0 else 0.0


def amdahl(share: float, gain: float) -> float:
    """Speedup of the whole when a part with this share of the time runs `gain` (or inf) times faster (Amdahl 1967)."""
    left = 1.0 - check_share("share", share) + share / check_positive("gain", gain)
    return 1.0 / left if left > 0.0 else math.inf


def implied_step(saved: float, gain: float) -> float:
    """The time x of a step that became `gain` times faster by saving `saved`: x / (x - saved) = gain.

    Turns the thesis's abstract (Ma and Wang 2026: 2.493 to 0.577 ms, step 1.108 x) into its step time.
    """
    if gain <= 1.0:
        raise ValueError(f"a step that saved time is more than 1 times faster, got {gain}")
    return check_positive("saved", saved) * gain / (gain - 1.0)


def cheap_head_gain(kept: float, kappa: float, nu: float) -> float:
    """Throughput ratio of a cheap head, rho (1 + kappa) / (1 + nu kappa) (SlimSpec, arXiv 2605.10453).

    rho = `kept`: TAR with the cheap head over TAR with the full one; `kappa`: time in the full head over the rest of the
    round; `nu`: cheap head's time over the full head's.
    """
    return check_latency("kept", kept) / cheap_head_gate(kappa, nu)


def cheap_head_gate(kappa: float, nu: float) -> float:
    """The share of TAR a cheap head must keep to pay: (1 + nu kappa) / (1 + kappa) (SlimSpec)."""
    return (1.0 + check_latency("nu", nu) * check_latency("kappa", kappa)) / (1.0 + kappa)


def interpolated(times: Mapping[int, float]) -> Callable[[float], float]:
    """A verify(k) or draft(k) for `Costs` from times at some blocks: linear between them, refused outside."""
    known = sorted(times)

    def at(block: float) -> float:
        if not known or not known[0] <= block <= known[-1]:
            raise ValueError(f"times were measured for blocks {known}, not {block}: measure that block or choose one between")
        below, above = max(k for k in known if k <= block), min(k for k in known if k >= block)
        weight = (block - below) / (above - below) if above > below else 0.0
        return times[below] * (1.0 - weight) + times[above] * weight

    return at


def bootstrap(samples: Sequence[Sequence[Any]], statistic: Callable[..., float], draws: int = 1000, seed: int = 0) -> Interval:
    """A statistic of samples and its 95 % percentile interval, by resampling with replacement (Efron 1979).

    Items must be independent: whole texts, not tokens; whole turns, not calls. ValueError for a sample of fewer than 3.
    """
    fewest = min((len(sample) for sample in samples), default=0)
    if fewest < 3:
        raise ValueError(f"an interval needs at least 3 items in every sample, got {fewest}; give more texts or repeats")
    check_block(draws)
    dice = random.Random(seed)
    found = sorted(statistic(*(dice.choices(sample, k=len(sample)) for sample in samples)) for _ in range(draws))
    edge = int(draws * (1 - 0.95) / 2)
    return Interval(statistic(*samples), found[edge], found[draws - 1 - edge])

"""Closed forms, replays and forecasts of speculative decoding: tokens per check, time per round, and when a cheaper part pays.

Letters: alpha is the acceptance rate of one drafted token, k the block (drafted tokens per check), TAR the tokens settled per
check, its own included. Times are in any one unit; rates are per that unit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from flashspec.typed import check_block, check_latency, check_positive, check_share

BURSTS, WAITS = (1, 2, 3, 4, 6, 8), (2, 4, 6, 8, 12)  # drafted tokens, and tokens that wait for the whole model, of schedules
Check = float | Callable[[int], float]  # a time, or a function of the tokens that wait
Shares = Sequence[float]  # of a text: the probability that each token is accepted


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

    def burst(self, block: int) -> float:
        """Time of drafting `block` tokens."""
        return self.draft(block) if callable(self.draft) else block * self.draft

    def check(self, block: int) -> float:
        """Time of one check of `block` drafted tokens."""
        return self.verify(block) if callable(self.verify) else self.verify


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
    draft, verify = costs.burst(check_block(block)), costs.check(block)
    times = {"draft": draft, "verify": verify, "finalize": costs.finalize, "overhead": costs.overhead}
    return {name: check_latency(name, time) for name, time in times.items()}


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


def cheap_head_gate(kappa: float, nu: float) -> float:
    """The share of TAR a cheap head must keep to pay: (1 + nu kappa) / (1 + kappa) (SlimSpec, arXiv 2605.10453).

    `kappa`: time in the full head over the rest of the round; `nu`: the cheap head's time over the full head's. The share that
    it keeps over this one is the ratio of throughputs.
    """
    return (1.0 + check_latency("nu", nu) * check_latency("kappa", kappa)) / (1.0 + kappa)


def interpolated(times: Mapping[int, float]) -> Callable[[float], float]:
    """A verify(k) or draft(k) for `Costs` from times at some blocks: linear between them, refused outside."""
    known = sorted(times)

    def at(block: float) -> float:
        if not known or not known[0] <= block <= known[-1]:
            raise ValueError(f"times were measured for blocks {known}, not {block}: measure that block or choose one between")
        return float(np.interp(block, known, [times[k] for k in known]))

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


class Level(NamedTuple):
    """A verifier: acts once `every` tokens wait, accepts each with probability alpha given all before it are.

    `check` is its time, a constant or a function of the tokens that wait. The first level's `every` is the burst.
    """

    alpha: float
    every: int
    check: Check

    def time(self, waiting: int) -> float:
        """Time of one action on so many waiting tokens."""
        return check_latency("check", self.check(waiting) if callable(self.check) else self.check)


def nested(draft: float, levels: Sequence[Level]) -> tuple[float, float]:
    """Expected final tokens and time of one action of the last level, above a writer that takes `draft` a token.

    The tokens that wait are a sum of what the level below delivers, stopped once there are enough (HiSpec, section 3); so
    many deliveries take their mean number times their mean time (Wald's identity). One over the other is the throughput.
    """
    if not levels:
        raise ValueError("a cascade needs at least one verifier above the writer")
    burst = check_block(levels[0].every)
    delivery, time = [*[0.0] * burst, 1.0], burst * check_latency("draft", draft)
    for level in levels:
        waiting = _gathered(delivery, check_block(level.every))
        time *= _mean(waiting) / _mean(delivery)
        time += sum(chance * level.time(count) for count, chance in enumerate(waiting) if chance)
        delivery = _delivered(waiting, check_share("alpha", level.alpha))
    return _mean(delivery), time


def scheduled(draft: float, checks: Sequence[Check], alphas: Sequence[float]) -> tuple[float, tuple[int, ...]]:
    """Tokens a unit of time at the best of all schedules of one verifier or two, and that schedule: the `every` of each."""
    found = []
    for every in product(BURSTS, *[WAITS] * (len(checks) - 1)):
        tokens, time = nested(draft, [Level(*level) for level in zip(alphas, every, checks, strict=True)])
        found.append((tokens / time, every))
    return max(found, key=lambda each: each[0])


def _mean(chances: Sequence[float]) -> float:
    return sum(count * chance for count, chance in enumerate(chances))


def _gathered(delivery: Sequence[float], every: int) -> list[float]:
    """Deliveries added up until at least `every` tokens wait."""
    waiting = [1.0, *[0.0] * (every + len(delivery) - 2)]
    for start in range(every):
        before, waiting[start] = waiting[start], 0.0
        for more, chance in enumerate(delivery):
            waiting[start + more] += before * chance
    return waiting


def _delivered(waiting: Sequence[float], alpha: float) -> list[float]:
    """What is delivered upwards: the accepted tokens, and one of the level's own."""
    delivered = [0.0] * (len(waiting) + 1)
    for count, chance in enumerate(waiting):
        for kept in range(count + 1):
            delivered[kept + 1] += chance * alpha**kept * (1.0 if kept == count else 1.0 - alpha)
    return delivered


class Counts(NamedTuple):
    """Expected counts of decoding texts that are known in advance, without the target.

    A lossless method prints the target's own text, in which each token came from the draft independently: token x with
    probability min(1, q(x) / p(x)) under speculative sampling (Leviathan et al. 2023, section 2.3), and 1 or 0, which makes
    counts exact, where draft and target share their noise or are greedy. One forward over the text gives these numbers.
    """

    rounds: float = 0.0
    drafted: float = 0.0
    accepted: float = 0.0
    emitted: int = 0

    @property
    def tar(self) -> float:
        """Tokens per check, its own included; ValueError where nothing was emitted."""
        if not self.rounds:
            raise ValueError("no round, so no tokens a round: give texts of at least one token")
        return self.emitted / self.rounds


def rounds_of(shares: Shares, block: int) -> Iterator[tuple[float, tuple[float, ...]]]:
    """For every token, the chance that a round starts there, and the chances that its first 0, 1, ... drafts are all accepted.

    A round drafts min(k, tokens left - 1), accepts some from the front and adds one, as the loop does.
    """
    check_block(block)
    for number, share in enumerate(shares):
        check_share(f"the probability of token {number}", share)
    size = len(shares)
    starts = [1.0, *[0.0] * size]
    for n in range(size):
        reach = tuple(accumulate(shares[n : n + min(block, size - n - 1)], mul, initial=1.0))
        for kept, (here, beyond) in enumerate(zip(reach, [*reach[1:], 0.0], strict=True)):
            starts[n + kept + 1] += starts[n] * (here - beyond)
        yield starts[n], reach


def replayed(texts: Iterable[Shares], block: int) -> Counts:
    """Counts of texts whose token n is proposed by the draft with probability shares[n]."""
    rounds = [each for shares in texts for each in rounds_of(shares, block)]
    drafted = sum(probability * (len(reach) - 1) for probability, reach in rounds)
    accepted = sum(probability * sum(reach[1:]) for probability, reach in rounds)
    return Counts(sum(probability for probability, _ in rounds), drafted, accepted, len(rounds))


def curve_by_position(texts: Iterable[Shares], block: int) -> tuple[float, ...]:
    """Acceptance at each position of a block given that all before it were accepted, up to the last that a replay reaches."""
    reached, accepted = [0.0] * block, [0.0] * block
    for shares in texts:
        for probability, reach in rounds_of(shares, block):
            for position, (before, after) in enumerate(pairwise(reach)):
                reached[position] += probability * before
                accepted[position] += probability * after
    return tuple(after / before for after, before in zip(accepted, reached, strict=True) if before)

"""A text that is known in advance, and how a draft would have done on it, without the target.

A lossless method prints the target's own text. Given that text, each of its tokens came from the draft independently: token x
with probability min(1, q(x) / p(x)) under speculative sampling (Leviathan et al. 2023, section 2.3), and 1 or 0 where draft and
target share their noise or are greedy. One forward over the text gives all of these numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import NamedTuple

from flashspec.theory.checks import check_block, check_share

Shares = Sequence[float]  # of a text: the probability that each token is accepted


class Counts(NamedTuple):
    """Expected counts of decoding known texts; exact where every probability is 1 or 0."""

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


def replayed(shares: Shares, block: int) -> Counts:
    """Counts of one text whose token n is proposed by the draft with probability shares[n]."""
    rounds = list(rounds_of(shares, block))
    drafted = sum(probability * (len(reach) - 1) for probability, reach in rounds)
    accepted = sum(probability * sum(reach[1:]) for probability, reach in rounds)
    return Counts(sum(probability for probability, _ in rounds), drafted, accepted, len(shares))


def replayed_all(texts: Iterable[Shares], block: int) -> Counts:
    """Counts of several texts."""
    columns = zip(*(replayed(shares, block) for shares in texts), strict=True)
    return Counts(*map(sum, columns))


def curve_by_position(texts: Iterable[Shares], block: int) -> tuple[float, ...]:
    """Acceptance at each position of a block given that all before it were accepted, up to the last that a replay reaches."""
    reached, accepted = [0.0] * block, [0.0] * block
    for shares in texts:
        for probability, reach in rounds_of(shares, block):
            for position, (before, after) in enumerate(pairwise(reach)):
                reached[position] += probability * before
                accepted[position] += probability * after
    return tuple(after / before for after, before in zip(accepted, reached, strict=True) if before)

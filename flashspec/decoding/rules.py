"""Acceptance rules: how many waiting tokens are kept, and which comes next; one law for every device.

A rule warps proposer's and verifier's scores once and alike. All of its random numbers are functions of (seed,
position, stage, use). Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.sampling import Dice, Positions, Sampling, Scores, warp
from flashspec.typed import typed


class Drawn(NamedTuple):
    """A proposal: token [1] on the device, the warped scores it was drawn from, and whether they had no NaN."""

    token: Tensor
    scores: Scores
    sound: Tensor


class Verdict(NamedTuple):
    """How many waiting tokens are kept [1], the token behind them [1], whether there was no NaN [1], warped scores."""

    kept: Tensor
    token: Tensor
    sound: Tensor
    scores: Scores


class Waiting(NamedTuple):
    """Tokens [m] that a stage is asked about, their proposals' scores, the first one's position, and the stage."""

    tokens: Tensor
    proposals: list[Scores]
    position: int
    stage: int

    @property
    def positions(self) -> list[int]:
        """The m + 1 positions that the verifier's rows speak for."""
        return list(range(self.position, self.position + len(self.tokens) + 1))


class AcceptanceRule(Protocol):
    """Draws tokens and judges those others drew; `exact` says whether the text keeps the verifier's law."""

    exact: bool
    sampling: Sampling

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        """Propose one token from one row of raw scores, without host synchronisation."""

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        """Judge m waiting tokens by m + 1 rows of raw scores, without host synchronisation."""


def prefix(flags: Tensor) -> Tensor:
    """How many [1] of the flags [m] hold before the first that does not."""
    return flags.long().cumprod(0).sum()[None]


def _one(position: int | Tensor) -> Positions:
    return position if isinstance(position, Tensor) else [position]


def draw_from(weights: Tensor, uniform: Tensor) -> Tensor:
    """Column [1] drawn from weights [1, m] of any sum by the inverse of their running sum."""
    running = weights.double().cumsum(-1)
    goal = uniform.to(running.device)[:, None] * running[:, -1:]
    return torch.searchsorted(running, goal, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)


def _draw_one(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Column [1] drawn from softmax(logits [1, m]), and whether there was one: no NaN, not all of them -inf."""
    drawn = kernels.draw(logits, uniform)
    if drawn is not None:
        return drawn.clamp(min=0), drawn >= 0
    probs = logits.softmax(-1)
    return draw_from(probs, uniform), ~torch.isnan(probs[:, 0])


def probability_of(scores: Scores, tokens: Tensor) -> Tensor:
    """Probability [n] of tokens [n] under each row of warped scores."""
    probs = scores.logits.softmax(-1)
    if scores.ids is None:
        return probs.gather(1, tokens[:, None])[:, 0]
    return (probs * (scores.ids == tokens[:, None])).sum(-1)


@typed
class GumbelCoupling:
    """Every stage adds a position's noise and takes the best: all exact methods print one text per seed.

    The Gumbel-max coupling of drafter-invariant speculative decoding (Daliri et al. 2025); greedy at temperature 0.
    """

    exact = True

    def __init__(self, sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> None:
        self.sampling, self.vocab_size, self.dice = sampling, vocab_size, dice or Dice(sampling.seed)

    def hashed(self, scores: Scores | None, positions: Positions) -> tuple[Tensor, ...]:
        """What `Dice.noise` makes noise of for these scores, as Dice.hashed; nothing at temperature 0."""
        return self.dice.hashed(scores, positions, self.vocab_size) if self.sampling.temperature else ()

    def best(self, scores: Scores, positions: Positions) -> tuple[Tensor, Tensor]:
        """Ids [n] of the best of warped scores [n, m] under each position's noise, and whether there was no NaN."""
        noise = self.hashed(scores, positions)
        columns = kernels.best_columns(scores.logits, *noise)
        if columns is not None:
            return scores.pick(columns.clamp(min=0)), columns >= 0
        logits = scores.logits + self.dice.noise(*noise) if noise else scores.logits
        best, columns = logits.max(-1)
        return scores.pick(columns), ~torch.isnan(best)

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        warped = warp(scores, self.sampling)
        token, sound = self.best(warped, _one(position))
        return Drawn(token, warped, sound)

    def law(self, positions: list[int], stage: int) -> kernels.Law:
        """What `draw` does at these positions, in the kernels' words; top-k and top-p apart."""
        return kernels.Law(self.sampling.temperature, *self.hashed(None, positions))

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        warped = warp(scores, self.sampling)
        wanted, sound = self.best(warped, waiting.positions)
        kept = prefix(wanted[:-1] == waiting.tokens)
        return Verdict(kept, wanted[kept], sound.all()[None], warped)


class SpeculativeSampling(GumbelCoupling):
    """Accept x with probability min(1, p(x)/q(x)), else draw from max(p - q, 0) (Leviathan et al. 2023, section 2.3).

    q is the very distribution the proposal was drawn from, sparse as the head was. Greedy at temperature 0.
    """

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        if self.sampling.temperature == 0:
            return super().draw(scores, position, stage)
        warped = warp(scores, self.sampling)
        column, sound = _draw_one(warped.logits, self.dice.uniform(_one(position), stage, "draw"))
        return Drawn(warped.pick(column), warped, sound)

    def law(self, positions: list[int], stage: int) -> kernels.Law:
        if self.sampling.temperature == 0:
            return super().law(positions, stage)
        return kernels.Law(self.sampling.temperature, uniform=self.dice.uniform(positions, stage, "draw"))

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        if self.sampling.temperature == 0:
            return super().verify(scores, waiting)
        warped, numbers = warp(scores, self.sampling), self.numbers(waiting)
        served = warped.ids is None and type(self) is SpeculativeSampling
        found = kernels.judge(warped.logits, waiting.proposals, waiting.tokens, numbers) if served else None
        if found is None:
            return self.judged(warped, waiting, numbers)
        return Verdict(found[:1], found[1:].clamp(min=0), found[1:] >= 0, warped)

    def numbers(self, waiting: Waiting) -> Tensor:
        """Numbers [2 m + 1] for m acceptances, m corrections and one more draw."""
        *among, behind = waiting.positions
        uses = ((among, "accept"), (among, "residual"), ([behind], "draw"))
        return torch.cat([self.dice.uniform(positions, waiting.stage, use) for positions, use in uses])

    def judged(self, warped: Scores, waiting: Waiting, numbers: Tensor) -> Verdict:
        """The verdict by warped scores and the law's own numbers; the last draw is from all of p."""
        m, sound = len(waiting.tokens), ~torch.isnan(warped.logits).any()[None]
        p, numbers = warped.dense(self.vocab_size), numbers.to(warped.logits.device)
        q = torch.cat([*(proposal.dense(self.vocab_size) for proposal in waiting.proposals), torch.zeros_like(p[:1])])
        kept = prefix(self.accepts(p[:-1], q[:-1], waiting.tokens, numbers[:m]))
        return Verdict(kept, draw_from(self.residual(p[kept], q[kept]), numbers[m + kept]), sound, warped)

    def accepts(self, p: Tensor, q: Tensor, tokens: Tensor, numbers: Tensor) -> Tensor:
        """Whether each of tokens [m], drawn from q [m, V], is accepted by p [m, V] at these numbers [m]."""
        mine, theirs = (law.gather(1, tokens[:, None])[:, 0] for law in (p, q))
        return numbers * theirs < mine

    def residual(self, p: Tensor, q: Tensor) -> Tensor:
        """Weights [1, V] of the token in place of a rejected one; p itself where nothing of it is left."""
        rest = (p - q).clamp_(min=0)
        return torch.where(rest.sum() > 0, rest, p)


class TypicalAcceptance(SpeculativeSampling):
    """Lossy: keep x where p(x) >= min(epsilon, delta exp(-entropy)) (Cai et al. 2024, section 2.3.1)."""

    exact = False
    epsilon, delta = 0.09, 0.3

    def accepts(self, p: Tensor, q: Tensor, tokens: Tensor, numbers: Tensor) -> Tensor:
        least = torch.clamp(self.delta * torch.exp(-torch.special.entr(p).sum(-1)), max=self.epsilon)
        return p.gather(1, tokens[:, None])[:, 0] >= least


KINDS: dict[str, Callable[..., AcceptanceRule]] = {
    "coupling": GumbelCoupling,
    "speculative": SpeculativeSampling,
    "typical": TypicalAcceptance,
}


def rule_for(sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> AcceptanceRule:
    """The acceptance rule a Sampling names, with the dice of its seed if no others are given."""
    return KINDS[sampling.rule](sampling, vocab_size, dice)

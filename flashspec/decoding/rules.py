"""Acceptance rules: how many waiting tokens are accepted and which token comes next, the same on every device.

A rule warps the scores of proposer and verifier once and in the same way. Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.sampling import Dice, Sampling, Scores, warp
from flashspec.typed import typed


class Drawn(NamedTuple):
    """A proposal: token [1], the warped scores it was drawn from, and whether they had no NaN [1]."""

    token: Tensor
    scores: Scores
    sound: Tensor


class Verdict(NamedTuple):
    """How many tokens are accepted [1], the token after them [1], whether there was no NaN [1], warped scores."""

    kept: Tensor
    token: Tensor
    sound: Tensor
    scores: Scores


class Waiting(NamedTuple):
    """Tokens [m] waiting for a stage, the scores they were drawn from, the first one's position, the stage's number."""

    tokens: Tensor
    proposals: list[Scores]
    position: int
    stage: int

    @property
    def positions(self) -> Tensor:
        """The m + 1 positions that the verifier's rows predict."""
        return torch.arange(self.position, self.position + len(self.tokens) + 1)


class AcceptanceRule(Protocol):
    """Draws and verifies tokens; `exact` says whether the text keeps the verifier's distribution."""

    exact: bool
    sampling: Sampling

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        """Propose one token from one row of raw scores, without host synchronisation."""

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        """Verify m waiting tokens with m + 1 rows of raw scores, without host synchronisation."""


def prefix(flags: Tensor) -> Tensor:
    """How many [1] of the flags [m] hold before the first that does not."""
    return flags.long().cumprod(0).sum()[None]


def draw_from(weights: Tensor, uniform: Tensor) -> Tensor:
    """Column [1] drawn from weights [1, m] of any sum by the inverse of their running sum."""
    running = weights.double().cumsum(-1)
    goal = uniform.to(running.device)[:, None] * running[:, -1:]
    return torch.searchsorted(running, goal, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)


@typed
class GumbelCoupling:
    """Every stage adds the position's noise and takes the best token: all exact methods print one text per seed.

    The Gumbel-max coupling of drafter-invariant speculative decoding (Daliri et al. 2025); greedy at temperature 0.
    """

    exact = True

    def __init__(self, sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> None:
        self.sampling, self.vocab_size, self.dice = sampling, vocab_size, dice or Dice(sampling.seed)

    def hashed(self, scores: Scores | None, positions: Tensor) -> tuple[Tensor, ...]:
        """What `Dice.noise` turns into noise for these scores; nothing at temperature 0."""
        return self.dice.hashed(scores, positions, self.vocab_size) if self.sampling.temperature else ()

    def best(self, scores: Scores, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n] of the best of warped scores [n, m] with noise, and whether there was no NaN [n]."""
        noise = self.hashed(scores, positions)
        columns = kernels.best_columns(scores.logits, *noise)
        if columns is not None:
            return scores.pick(columns.clamp(min=0)), columns >= 0
        logits = scores.logits + self.dice.noise(*noise) if noise else scores.logits
        best, columns = logits.max(-1)
        return scores.pick(columns), ~torch.isnan(best)

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        warped = warp(scores, self.sampling)
        token, sound = self.best(warped, torch.as_tensor(position).view(1))
        return Drawn(token, warped, sound)

    def law(self, positions: Tensor, stage: int) -> kernels.Law:
        """How `draw` works at these positions, in the terms of the kernels; without top-k and top-p."""
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
        warped, (uniform,) = warp(scores, self.sampling), self.dice.uniform(torch.as_tensor(position).view(1), stage, "draw")
        column = kernels.draw(warped.logits, uniform)
        if column is not None:
            return Drawn(warped.pick(column.clamp(min=0)), warped, column >= 0)
        probs = warped.logits.softmax(-1)
        return Drawn(warped.pick(draw_from(probs, uniform)), warped, ~torch.isnan(probs[:, 0]))

    def law(self, positions: Tensor, stage: int) -> kernels.Law:
        if self.sampling.temperature == 0:
            return super().law(positions, stage)
        return kernels.Law(self.sampling.temperature, uniform=self.dice.uniform(positions, stage, "draw")[0])

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
        """Random numbers [2 m + 1]: m acceptances, m corrections and one more draw."""
        accept, residual, draw = self.dice.uniform(waiting.positions, waiting.stage, "accept", "residual", "draw")
        return torch.cat((accept[:-1], residual[:-1], draw[-1:]))

    def judged(self, warped: Scores, waiting: Waiting, numbers: Tensor) -> Verdict:
        """The verdict on warped scores with these random numbers; the last draw is from all of p."""
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
        """Weights [1, V] of the token that replaces a rejected one; p itself where no weight is left."""
        rest = (p - q).clamp_(min=0)
        return torch.where(rest.sum() > 0, rest, p)


class TypicalAcceptance(SpeculativeSampling):
    """Lossy: keep x where p(x) >= min(epsilon, delta exp(-entropy)) (Cai et al. 2024, section 2.3.1)."""

    exact = False
    epsilon, delta = 0.09, 0.3

    def accepts(self, p: Tensor, q: Tensor, tokens: Tensor, numbers: Tensor) -> Tensor:
        least = torch.clamp(self.delta * torch.exp(-torch.special.entr(p).sum(-1)), max=self.epsilon)
        return p.gather(1, tokens[:, None])[:, 0] >= least


class ScriptedAcceptance:
    """Simulated: does the work of `inner`, then accepts waiting token j with probability curve[j].

    Past its end the curve keeps its last entry. Coin flips are functions of the seed and the position.
    """

    exact = False

    def __init__(self, inner: AcceptanceRule, curve: Sequence[float]) -> None:
        if not curve or not all(0 <= share <= 1 for share in curve):
            raise ValueError(f"an acceptance curve is one probability or more, each in [0, 1], got {tuple(curve)}")
        self.inner, self.curve, self.sampling = inner, tuple(curve), inner.sampling

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        return self.inner.draw(scores, position, stage)

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        verdict, places = self.inner.verify(scores, waiting), waiting.positions[:-1]
        (flips,) = Dice(self.sampling.seed).uniform(places, waiting.stage, "accept")
        curve = torch.tensor([self.curve[min(j, len(self.curve) - 1)] for j in range(len(places))], dtype=torch.float64)
        kept, best = prefix(flips < curve).to(scores.logits.device), verdict.scores.logits.argmax(-1)
        return verdict._replace(kept=kept, token=verdict.scores.pick(best)[kept])


KINDS = {"coupling": GumbelCoupling, "speculative": SpeculativeSampling, "typical": TypicalAcceptance}


def rule_for(sampling: Sampling, vocab_size: int) -> AcceptanceRule:
    """The acceptance rule that a Sampling names."""
    return KINDS[sampling.rule](sampling, vocab_size)

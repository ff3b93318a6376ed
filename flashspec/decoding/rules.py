"""Acceptance rules: how many waiting tokens stand, and which token comes next.

A rule warps scores once, with the same temperature, top-k and top-p for proposer and verifier. All of its random numbers
are functions of (seed, position, stage, use), so eager and deferred runs draw the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.scores import Dice, Positions, Sampling, Scores, warp

NAN = "the model gave NaN logits; check the checkpoint, or load it with dtype='float32'"


class Drawn(NamedTuple):
    """A proposal: token [1] on the device, the warped scores it was drawn from, and whether they were sound (no NaN)."""

    token: Tensor
    scores: Scores
    sound: Tensor


class Verdict(NamedTuple):
    """How many waiting tokens stand, the token that follows them, and the verifier's warped scores for all rows."""

    kept: int
    token: int
    scores: Scores


class Waiting(NamedTuple):
    """Tokens a stage is asked about: ids, each one's proposal scores, the position of the first, and the asking stage."""

    tokens: list[int]
    proposals: list[Scores]
    position: int
    stage: int


class AcceptanceRule(Protocol):
    """Draws tokens from scores and judges tokens others drew; `exact` says whether the text keeps the verifier's law."""

    exact: bool
    sampling: Sampling

    def draw(self, scores: Scores, position: int, stage: int) -> Drawn:
        """Propose one token from one row of raw scores, without host synchronisation."""

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        """Judge m waiting tokens by m + 1 rows of raw scores; one host synchronisation."""


def leading(scores: Scores, count: int) -> Scores:
    """The first rows of scores."""
    return Scores(None if scores.ids is None else scores.ids[:count], scores.logits[:count])


def _places(position: int | Tensor) -> Positions:
    """A position as one of many; one that was given on a device stays there."""
    return position if isinstance(position, Tensor) else [position]


def _refuse_nan(sound: Tensor) -> None:
    if not bool(sound.all()):
        raise FloatingPointError(NAN)


def _agreeing(wanted: list[int], waiting: list[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(wanted, waiting, strict=False)) if a != b), len(waiting))


class GumbelCoupling:
    """Every stage adds the same noise at the same position and takes the best: all exact methods print one text per seed.

    The Gumbel-max coupling of drafter-invariant speculative decoding (Daliri et al. 2025); greedy at temperature 0.
    """

    exact = True

    def __init__(self, sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> None:
        self.sampling, self.vocab_size, self.dice = sampling, vocab_size, dice or Dice(sampling.seed)

    def _best(self, scores: Scores, positions: Positions) -> tuple[Tensor, Tensor]:
        """Ids [n] of the best scores, and whether there was one: no NaN."""
        noise = self.dice.hashed(scores, positions, self.vocab_size) if self.sampling.temperature else ()
        columns = kernels.best_columns(scores.logits, *noise)
        if columns is not None:
            return scores.pick(columns.clamp(min=0)), columns >= 0
        logits = scores.logits + self.dice.noise(*noise) if noise else scores.logits
        best, columns = logits.max(-1)
        return scores.pick(columns), ~torch.isnan(best)

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        warped = warp(scores, self.sampling)
        token, sound = self._best(warped, _places(position))
        return Drawn(token, warped, sound)

    def law(self, positions: list[int], stage: int) -> kernels.Law:
        """What `draw` does at these positions, in the kernels' words; top-k and top-p apart."""
        heat = self.sampling.temperature
        if heat == 0:
            return kernels.Law(heat)
        return kernels.Law(heat, *self.dice.hashed(None, positions, self.vocab_size))

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        warped = warp(scores, self.sampling)
        count = len(waiting.tokens) + 1
        chosen, sound = self._best(warped, list(range(waiting.position, waiting.position + count)))
        _refuse_nan(sound)
        wanted = chosen.tolist()
        kept = _agreeing(wanted, waiting.tokens)
        return Verdict(kept, wanted[kept], warped)


def draw_from(weights: Tensor, uniform: Tensor) -> Tensor:
    """Column [1] drawn from weights [1, m] (not necessarily summing to one) by the inverse of their running sum."""
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


class SpeculativeSampling:
    """Accept x with probability min(1, p(x)/q(x)), else draw from max(p - q, 0) (Leviathan et al. 2023, section 2.3).

    q is the very distribution the proposal was drawn from, sparse where the head scored a part of the vocabulary.
    """

    exact = True

    def __init__(self, sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> None:
        self.sampling, self.vocab_size, self.dice = sampling, vocab_size, dice or Dice(sampling.seed)
        self.greedy = GumbelCoupling(sampling, vocab_size)

    def draw(self, scores: Scores, position: int | Tensor, stage: int) -> Drawn:
        if self.sampling.temperature == 0:
            return self.greedy.draw(scores, position, stage)
        warped = warp(scores, self.sampling)
        column, sound = _draw_one(warped.logits, self.dice.uniform(_places(position), stage, "draw"))
        return Drawn(warped.pick(column), warped, sound)

    def law(self, positions: list[int], stage: int) -> kernels.Law:
        """What `draw` does at these positions, in the kernels' words; top-k and top-p apart."""
        if self.sampling.temperature == 0:
            return self.greedy.law(positions, stage)
        return kernels.Law(self.sampling.temperature, uniform=self.dice.uniform(positions, stage, "draw"))

    def verify(self, scores: Scores, waiting: Waiting) -> Verdict:
        if self.sampling.temperature == 0:
            return self.greedy.verify(scores, waiting)
        warped = warp(scores, self.sampling)
        fast = self._judged(warped, waiting)
        if fast is not None:
            return fast
        _refuse_nan(~torch.isnan(warped.logits.amax(-1)))
        kept = self._accepted(warped, waiting)
        return Verdict(kept, self._next(warped, waiting, kept), warped)

    def _judged(self, warped: Scores, waiting: Waiting) -> Verdict | None:
        """The verdict in one kernel call, None where the kernels do not serve it."""
        if warped.ids is not None or type(self) is not SpeculativeSampling:
            return None
        found = kernels.judge(warped.logits, waiting.proposals, waiting.tokens, self._uniforms(waiting))
        if found is None:
            return None
        if found[1] < 0:
            raise FloatingPointError(NAN)
        return Verdict(*found, warped)

    def _uniforms(self, waiting: Waiting) -> Tensor:
        """Numbers [2 m + 1] for m acceptances, m corrections and one more draw."""
        first, stop = waiting.position, waiting.position + len(waiting.tokens)
        among = list(range(first, stop))
        uses = ((among, "accept"), (among, "residual"), ([stop], "draw"))
        return torch.cat([self.dice.uniform(positions, waiting.stage, use) for positions, use in uses])

    def _accepted(self, warped: Scores, waiting: Waiting) -> int:
        """Length of the accepted prefix."""
        if not waiting.tokens:
            return 0
        tokens = torch.tensor(waiting.tokens, device=warped.logits.device)
        mine = probability_of(leading(warped, len(tokens)), tokens)
        theirs = torch.cat([probability_of(q, tokens[i : i + 1]) for i, q in enumerate(waiting.proposals)])
        positions = list(range(waiting.position, waiting.position + len(tokens)))
        dice = self.dice.uniform(positions, waiting.stage, "accept").to(mine.device)
        stands = dice * theirs < mine
        return int(stands.long().cumprod(0).sum())

    def _next(self, warped: Scores, waiting: Waiting, kept: int) -> int:
        """The correction at the first rejection, or one more token after all were kept."""
        position = waiting.position + kept
        if kept == len(waiting.tokens):
            own = warped.row(kept)
            column, _ = _draw_one(own.logits, self.dice.uniform([position], waiting.stage, "draw"))
            return int(own.pick(column))
        mine = warped.row(kept).dense(self.vocab_size)
        rest = (mine - waiting.proposals[kept].dense(self.vocab_size)).clamp_(min=0)
        weights = rest if float(rest.sum()) > 0 else mine
        return int(draw_from(weights, self.dice.uniform([position], waiting.stage, "residual")))


class TypicalAcceptance(SpeculativeSampling):
    """Lossy: keep x where p(x) >= min(epsilon, delta exp(-entropy)) (Cai et al. 2024, section 2.3.1)."""

    exact = False
    epsilon, delta = 0.09, 0.3

    def _accepted(self, warped: Scores, waiting: Waiting) -> int:
        if not waiting.tokens:
            return 0
        tokens = torch.tensor(waiting.tokens, device=warped.logits.device)
        rows = leading(warped, len(tokens))
        entropy = torch.special.entr(rows.logits.softmax(-1)).sum(-1)
        least = torch.clamp(self.delta * torch.exp(-entropy), max=self.epsilon)
        return int((probability_of(rows, tokens) >= least).long().cumprod(0).sum())


KINDS: dict[str, Callable[..., AcceptanceRule]] = {
    "coupling": GumbelCoupling,
    "speculative": SpeculativeSampling,
    "typical": TypicalAcceptance,
}


def rule_for(sampling: Sampling, vocab_size: int, dice: Dice | None = None) -> AcceptanceRule:
    """The acceptance rule a Sampling names, with the dice of its seed if no others are given."""
    return KINDS[sampling.rule](sampling, vocab_size, dice)

"""Acceptance on the device: the verdicts of the rules as tensors, so that the host waits once for a whole verification."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import GumbelCoupling, Verdict, draw_from, probability_of
from flashspec.scores import DeviceDice, Sampling, Scores, warp


class Ask(NamedTuple):
    """Waiting tokens [m], their proposals, the positions [m + 1] that the verifier's rows speak for, and the asking stage.

    `kept` [1] says how many tokens stand where that is scripted.
    """

    tokens: Tensor
    proposals: list[Scores]
    positions: Tensor
    stage: int
    kept: Tensor | None = None


class Ruling(NamedTuple):
    """How many waiting tokens stand [1], the token behind them [1], whether the scores were sound [1], and those, warped."""

    kept: Tensor
    token: Tensor
    sound: Tensor
    scores: Scores


class Judged(NamedTuple):
    """Tokens that were asked about, on the host, the verdict on them, and the raw scores, good until the next call."""

    asked: list[int]
    verdict: Verdict
    scores: Scores


def listed(numbers: Tensor, sound: list[Tensor]) -> list[int]:
    """Numbers [n] on the host, in the one transfer that also tells whether the flags hold; FloatingPointError where not."""
    packed = torch.cat([numbers, *sound]).tolist()
    if not all(packed[len(numbers) :]):
        raise FloatingPointError("a model gave NaN logits; check the checkpoint, or load it with dtype='float32'")
    return packed[: len(numbers)]


def coupled(sampling: Sampling) -> bool:
    """Whether a rule compares tokens alone: the coupling, and every rule at temperature 0."""
    return sampling.temperature == 0 or sampling.rule == "coupling"


def settled(sampling: Sampling, scores: Scores, ask: Ask) -> Ruling:
    """The verdict of the sampling's rule on raw scores [m + 1, ...] of the whole vocabulary, without host synchronisation."""
    if coupled(sampling):
        return _compared(sampling, scores, ask)
    if sampling.rule != "speculative":
        raise ValueError(f"rule {sampling.rule!r} judges on the host; on the device there are coupling and speculative")
    return _weighed(sampling, scores, ask)


def _compared(sampling: Sampling, scores: Scores, ask: Ask) -> Ruling:
    """As GumbelCoupling.verify."""
    rule = GumbelCoupling(sampling, scores.logits.shape[1], DeviceDice(sampling.seed))
    wanted = rule.draw(scores, ask.positions, ask.stage)
    kept = _prefix(wanted.token[:-1] == ask.tokens) if ask.kept is None else ask.kept
    return Ruling(kept, wanted.token[kept], wanted.sound.all()[None], wanted.scores)


def _weighed(sampling: Sampling, scores: Scores, ask: Ask) -> Ruling:
    """As SpeculativeSampling.verify: where all were kept nothing is taken from p, and the next token is drawn from it."""
    warped, dice = warp(scores, sampling), DeviceDice(sampling.seed)
    vocab, sound = scores.logits.shape[1], ~torch.isnan(scores.logits).any()[None]
    p = warped.dense(vocab)
    q = torch.cat([*(proposal.dense(vocab) for proposal in ask.proposals), torch.zeros_like(p[:1])])
    mine = probability_of(Scores(None, warped.logits[:-1]), ask.tokens)
    theirs = q[:-1].gather(1, ask.tokens[:, None])[:, 0]
    kept = _prefix(dice.uniform(ask.positions[:-1], ask.stage, "accept") * theirs < mine)
    place = ask.positions[kept]
    own, residual = (dice.uniform(place, ask.stage, use) for use in ("draw", "residual"))
    rest = (p[kept] - q[kept]).clamp_(min=0)
    weights = torch.where(rest.sum() > 0, rest, p[kept])
    return Ruling(kept, draw_from(weights, torch.where(kept == len(ask.tokens), own, residual)), sound, warped)


def _prefix(stands: Tensor) -> Tensor:
    """How many [1] of the flags [m] hold before the first that does not."""
    return stands.long().cumprod(0).sum()[None]

"""Rules and warps, one decision at a time."""

from __future__ import annotations

import math

import pytest
import torch

from flashspec.decoding.rules import GumbelCoupling, SpeculativeSampling, TypicalAcceptance, Waiting, probability_of
from flashspec.sampling import Sampling, Scores, warp

VOCAB = 50
WARPS = [(0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.8), (0.3, 0, 0.05), (1.2, 7, 0.6), (1.0, 1, 1.0), (1.0, 50, 0.999)]
RULES = [GumbelCoupling, SpeculativeSampling, TypicalAcceptance]


def logits(rows: int, seed: int = 0, width: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2


def by_transformers(raw: torch.Tensor, temperature: float, top_k: int, top_p: float, order=(0, 1, 2)) -> torch.Tensor:
    """The same warp by transformers' own processors."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    made = [
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p < 1 else None,
    ]
    for step in (made[i] for i in order):
        raw = step(None, raw) if step else raw
    return raw


@pytest.mark.parametrize("parts", WARPS)
def test_warp_is_transformers_own(parts):
    raw = logits(20)
    assert torch.equal(warp(Scores(None, raw), Sampling(*parts)).logits, by_transformers(raw, *parts))


def test_the_control_another_order_is_caught():
    raw = logits(20)
    wrong = by_transformers(raw, 1.5, 5, 0.7, order=(2, 0, 1))
    assert not torch.equal(warp(Scores(None, raw), Sampling(1.5, 5, 0.7)).logits, wrong)


def test_warping_keeps_ties_at_the_edge_and_always_the_best():
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert warp(Scores(None, tied), Sampling(1.0, top_k=2)).logits.isfinite().tolist() == [[True, True, True, False]]
    assert warp(Scores(None, tied), Sampling(1.0, top_p=1e-6)).logits.isfinite().tolist() == [[True, False, False, False]]


def waiting(tokens: list[int], rows: torch.Tensor) -> Waiting:
    return Waiting(torch.tensor(tokens), [Scores(None, rows[i : i + 1]) for i in range(len(tokens))], 10, 1)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_rule_leaves_its_inputs_alone(kind, temperature):
    rule = kind(Sampling(temperature, top_k=20, top_p=0.9), VOCAB)
    mine, theirs = logits(4, 1), logits(3, 2)
    before = mine.clone(), theirs.clone()
    asked = waiting([3, 4, 5], theirs)
    first = rule.verify(Scores(None, mine), asked)
    drawn = rule.draw(Scores(None, mine[:1]), 10, 0)
    assert torch.equal(mine, before[0])
    assert torch.equal(theirs, before[1])
    again = rule.verify(Scores(None, mine), asked)
    assert (int(first.kept), int(first.token)) == (int(again.kept), int(again.token))
    assert torch.equal(first.scores.logits, warp(Scores(None, mine), rule.sampling).logits)
    assert torch.equal(drawn.token, rule.draw(Scores(None, mine[:1]), 10, 0).token)


@pytest.mark.parametrize("kind", RULES[:2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equal_proposals_always_stand(kind, temperature):
    rule, rows = kind(Sampling(temperature), VOCAB), logits(5)
    drawn = [rule.draw(Scores(None, rows[i : i + 1]), 10 + i, 0) for i in range(4)]
    asked = Waiting(torch.cat([d.token for d in drawn]), [d.scores for d in drawn], 10, 1)
    assert rule.verify(Scores(None, rows), asked).kept == 4


@pytest.mark.parametrize("kind", RULES[:2])
def test_impossible_proposals_never_stand(kind):
    rows = logits(2).index_fill(1, torch.tensor([7]), -math.inf)
    asked = waiting([7], logits(1, 4))
    kept = [int(kind(Sampling(1.0, seed=s), VOCAB).verify(Scores(None, rows), asked).kept) for s in range(50)]
    assert kept == [0] * 50


def test_the_residual_never_gives_the_token_that_was_refused_for_too_much_q():
    """Where p(x) <= q(x) the residual has no mass at x."""
    p, q = logits(2, 1), logits(1, 2)
    token = int((q.softmax(-1) - p[:1].softmax(-1)).argmax())
    verdicts = [
        SpeculativeSampling(Sampling(1.0, seed=s), VOCAB).verify(Scores(None, p), waiting([token], q)) for s in range(200)
    ]
    assert 0 in {int(v.kept) for v in verdicts}
    assert all(int(v.token) != token for v in verdicts if not int(v.kept))


def test_probabilities_of_sparse_scores_count_each_id_once():
    ids = torch.tensor([[4, 9, 4], [1, 2, 2]])
    scores = Scores(ids, torch.tensor([[0.0, 1.0, -math.inf], [0.5, 0.5, -math.inf]]))
    found = probability_of(scores, torch.tensor([4, 3]))
    assert torch.allclose(found, torch.tensor([1 / (1 + math.e), 0.0]))
    assert torch.allclose(scores.dense(VOCAB).sum(1), torch.ones(2))
    assert torch.allclose(scores.dense(VOCAB)[0, 4], found[0])


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_scores_are_marked(kind, temperature):
    rule, rows = kind(Sampling(temperature), VOCAB), logits(3)
    rows[2, 5] = math.nan
    asked = waiting([1, 2], logits(2))
    assert not bool(rule.verify(Scores(None, rows), asked).sound) and bool(rule.verify(Scores(None, logits(3)), asked).sound)
    assert not bool(rule.draw(Scores(None, rows[2:]), 10, 0).sound)
    assert bool(rule.draw(Scores(None, rows[:1]), 10, 0).sound)


def test_a_single_surviving_token_is_drawn_whatever_the_dice():
    alone = torch.full((1, VOCAB), -math.inf).index_fill_(1, torch.tensor([31]), 0.0)
    tokens = {int(SpeculativeSampling(Sampling(1.0, seed=s), VOCAB).draw(Scores(None, alone), 3, 0).token) for s in range(50)}
    assert tokens == {31}


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_p": 0.0},
                                 {"top_p": 1.1}, {"top_k": -1}, {"rule": "hope"}])  # fmt: skip
def test_nonsense_sampling_is_refused_in_words(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*{next(iter(bad.values()))}"):
        Sampling(**bad)

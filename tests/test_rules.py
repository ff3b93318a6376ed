"""Rules, warps and dice, one decision at a time."""

import math

import pytest
import torch
from scipy.stats import gumbel_r, kstest

from flashspec.decoding.rules import GumbelCoupling, SpeculativeSampling, TypicalAcceptance, Waiting
from flashspec.sampling import Dice, Sampling, Scores, warp

VOCAB, IDS = 50, 5000
WARPS = [(0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.8), (0.3, 0, 0.05), (1.2, 7, 0.6), (1.0, 1, 1.0), (1.0, 50, 0.999)]
RULES = [GumbelCoupling, SpeculativeSampling, TypicalAcceptance]
POSITIONS = torch.arange(3, 11)
USES = ("draw", "accept", "residual")


def logits(rows, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def by_transformers(raw, temperature, top_k, top_p, order=(0, 1, 2)):
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    made = [
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p < 1 else None,
    ]
    for step in (made[i] for i in order):
        raw = step(None, raw) if step else raw
    return raw


def test_warp_is_transformers_own_and_another_order_is_not():
    raw = logits(20)
    for parts in WARPS:
        assert torch.equal(warp(Scores(None, raw), Sampling(*parts)).logits, by_transformers(raw, *parts))
    wrong = by_transformers(raw, 1.5, 5, 0.7, order=(2, 0, 1))
    assert not torch.equal(warp(Scores(None, raw), Sampling(1.5, 5, 0.7)).logits, wrong)
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert warp(Scores(None, tied), Sampling(1.0, top_k=2)).logits.isfinite().tolist() == [[True, True, True, False]]
    assert warp(Scores(None, tied), Sampling(1.0, top_p=1e-6)).logits.isfinite().tolist() == [[True, False, False, False]]


def waiting(tokens, rows):
    return Waiting(torch.tensor(tokens), [Scores(None, rows[i : i + 1]) for i in range(len(tokens))], 10, 1)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_rule_leaves_its_inputs_alone_and_decides_the_same_again(kind, temperature):
    rule = kind(Sampling(temperature, top_k=20, top_p=0.9), VOCAB)
    mine, theirs = logits(4, 1), logits(3, 2)
    asked = waiting([3, 4, 5], theirs)
    first, again = (rule.verify(Scores(None, mine), asked) for _ in range(2))
    drawn, redrawn = (rule.draw(Scores(None, mine[:1]), 10, 0) for _ in range(2))
    assert torch.equal(mine, logits(4, 1)) and torch.equal(theirs, logits(3, 2))
    assert (int(first.kept), int(first.token)) == (int(again.kept), int(again.token))
    assert torch.equal(first.scores.logits, warp(Scores(None, mine), rule.sampling).logits)
    assert torch.equal(drawn.token, redrawn.token)


@pytest.mark.parametrize("kind", RULES[:2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equal_proposals_are_accepted_and_impossible_ones_never(kind, temperature):
    rule, rows = kind(Sampling(temperature), VOCAB), logits(5)
    drawn = [rule.draw(Scores(None, rows[i : i + 1]), 10 + i, 0) for i in range(4)]
    asked = Waiting(torch.cat([d.token for d in drawn]), [d.scores for d in drawn], 10, 1)
    assert rule.verify(Scores(None, rows), asked).kept == 4
    without = Scores(None, logits(2).index_fill(1, torch.tensor([7]), -math.inf))
    rules = [kind(Sampling(temperature, seed=s), VOCAB) for s in range(50)]
    assert [int(rule.verify(without, waiting([7], logits(1, 4))).kept) for rule in rules] == [0] * 50


def test_the_residual_never_gives_the_token_that_was_refused_for_too_much_q():
    p, q = logits(2, 1), logits(1, 2)
    token = int((q.softmax(-1) - p[:1].softmax(-1)).argmax())
    rules = [SpeculativeSampling(Sampling(1.0, seed=s), VOCAB) for s in range(200)]
    verdicts = [rule.verify(Scores(None, p), waiting([token], q)) for rule in rules]
    assert 0 in {int(v.kept) for v in verdicts}
    assert all(int(v.token) != token for v in verdicts if not int(v.kept))
    alone = Scores(None, torch.full((1, VOCAB), -math.inf).index_fill_(1, torch.tensor([31]), 0.0))
    assert {int(rule.draw(alone, 3, 0).token) for rule in rules} == {31}
    ids = torch.tensor([[4, 9, 4], [1, 2, 2]])
    scores = Scores(ids, torch.tensor([[0.0, 1.0, -math.inf], [0.5, 0.5, -math.inf]]))
    found = scores.dense(VOCAB).gather(1, torch.tensor([[4], [3]]))[:, 0]
    assert torch.allclose(found, torch.tensor([1 / (1 + math.e), 0.0]))
    assert torch.allclose(scores.dense(VOCAB).sum(1), torch.ones(2))


def noise(seed, positions=POSITIONS, ids=None):
    width = IDS if ids is None else ids.shape[1]
    return Dice(seed).gumbel(Scores(ids, torch.zeros(len(positions), width)), positions, IDS)


def p_value(found, law=gumbel_r.cdf):
    return kstest(found.flatten().numpy(), law).pvalue


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -1])
def test_the_noise_is_standard_gumbel_and_a_wider_one_is_not(seed):
    assert p_value(noise(seed)) > 1e-4 > p_value(1.05 * noise(seed))
    assert p_value(noise(seed, torch.arange(IDS), torch.full((IDS, 1), 17))) > 1e-4
    wins = torch.cat([noise(seed + s, torch.arange(500), torch.arange(8).expand(500, 8)).argmax(1) for s in range(20)])
    spread = ((torch.bincount(wins, minlength=8) - 1250.0) ** 2 / 1250).sum()
    assert spread < 29.9  # chi-square, 7 degrees of freedom, p = 1e-4


def test_noise_belongs_to_positions_and_ids():
    whole, back = noise(5), noise(5, POSITIONS.flip(0)).flip(0)
    alone = torch.cat([noise(5, POSITIONS[i : i + 1]) for i in range(len(POSITIONS))])
    assert torch.equal(whole, back) and torch.equal(whole, alone) and torch.isfinite(whole).all()
    ids = torch.randint(0, IDS, (len(POSITIONS), 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(5, ids=ids), whole.gather(1, ids)) and not torch.equal(noise(5, ids=ids), whole[:, :40])
    base = noise(5)
    for other in (base[1], noise(6)[0]):
        assert abs(float(torch.corrcoef(torch.stack([base[0], other]))[0, 1])) < 0.06


@pytest.mark.parametrize("use", USES)
def test_uniforms_are_uniform_and_no_number_serves_two_purposes(use):
    for stage in (0, 2):
        found = Dice(0).uniform(torch.arange(5000), stage, use)
        assert found.dtype is torch.float64 and 0 < float(found.min()) < float(found.max()) < 1
        assert p_value(found, "uniform") > 1e-4
    drawn = [Dice(seed).uniform(torch.arange(300), stage, use)[0] for seed in (0, 1) for stage in (0, 1, 2) for use in USES]
    table = torch.stack(drawn)
    assert len(table.unique()) == table.numel()
    assert float((torch.corrcoef(table) - torch.eye(len(table))).abs().max()) < 0.25
    alone = [Dice(3).uniform(torch.tensor([p]), 1, "draw") for p in (9, 2)]
    assert torch.equal(Dice(3).uniform(torch.tensor([9, 2]), 1, "draw"), torch.cat(alone, 1))
    with pytest.raises(KeyError):
        Dice(3).uniform(torch.tensor([1]), 0, "luck")

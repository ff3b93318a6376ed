"""Rules, warps and dice, one decision at a time."""

import math

import pytest
import torch
from scipy.stats import gumbel_r, kstest

from flashspec.decoding.rules import GumbelCoupling, SpeculativeSampling, TypicalAcceptance, Waiting
from flashspec.sampling import Dice, Sampling, Scores, warp

VOCAB, IDS = 50, 5000
WARPS = [(0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.8), (0.3, 0, 0.05), (1.2, 7, 0.6), (1.0, 1, 1.0), (1.0, 50, 0.999)]
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


@pytest.mark.parametrize("kind", [GumbelCoupling, SpeculativeSampling, TypicalAcceptance])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_rule_leaves_its_inputs_alone_and_promotes_warped_scores(kind, temperature):
    rule, mine, theirs = kind(Sampling(temperature, top_k=20, top_p=0.9), VOCAB), logits(4, 1), logits(3, 2)
    asked = Waiting(torch.tensor([3, 4, 5]), [Scores(None, row[None]) for row in theirs], 10, 1)
    assert torch.equal(rule.verify(Scores(None, mine), asked).scores.logits, warp(Scores(None, mine), rule.sampling).logits)
    assert torch.equal(mine, logits(4, 1)) and torch.equal(theirs, logits(3, 2))


def test_an_id_that_is_listed_twice_counts_once():
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.5, 0.5, -math.inf]])
    found = Scores(torch.tensor([[4, 9, 4], [1, 2, 2]]), logits).dense(VOCAB)
    assert torch.allclose(found.sum(1), torch.ones(2)) and float(found[0, 4]) == pytest.approx(1 / (1 + math.e))


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

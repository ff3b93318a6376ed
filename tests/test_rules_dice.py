"""Dice belong to positions: hashes of (seed, position, ...), the same whoever asks and in whatever order."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import gumbel_r, kstest

from flashspec.sampling import Dice, Scores

VOCAB = 5000
POSITIONS = torch.arange(3, 11)
USES = ("draw", "accept", "residual", "clusters")


def noise(dice: Dice, positions: torch.Tensor = POSITIONS, ids: torch.Tensor | None = None) -> torch.Tensor:
    width = VOCAB if ids is None else ids.shape[1]
    return dice.gumbel(Scores(ids, torch.zeros(len(positions), width)), positions, VOCAB)


def uniforms(count: int, seed: int = 0, stage: int = 1, use: str = "accept") -> torch.Tensor:
    return Dice(seed).uniform(list(range(count)), stage, use)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -1])
def test_the_noise_is_standard_gumbel(seed):
    assert kstest(noise(Dice(seed)).flatten().numpy(), gumbel_r.cdf).pvalue > 1e-4
    across = noise(Dice(seed), torch.arange(VOCAB), torch.full((VOCAB, 1), 17))
    assert kstest(across.flatten().numpy(), gumbel_r.cdf).pvalue > 1e-4


def test_the_control_noise_of_another_width_is_caught():
    assert kstest(1.05 * noise(Dice(0)).flatten().numpy(), gumbel_r.cdf).pvalue < 1e-4


def test_every_id_wins_equally_often():
    wins = torch.cat([noise(Dice(s), torch.arange(500), torch.arange(8).expand(500, 8)).argmax(1) for s in range(20)])
    spread = ((torch.bincount(wins, minlength=8) - 1250.0) ** 2 / 1250).sum()
    assert spread < 29.9  # chi-square, 7 degrees of freedom, p = 1e-4


def test_noise_does_not_depend_on_batch_or_order():
    whole, back = noise(Dice(5)), noise(Dice(5), POSITIONS.flip(0)).flip(0)
    alone = torch.cat([noise(Dice(5), POSITIONS[i : i + 1]) for i in range(len(POSITIONS))])
    assert torch.equal(whole, back)
    assert torch.equal(whole, alone)
    assert torch.isfinite(whole).all()


def test_sparse_ids_look_up_the_dense_noise():
    ids = torch.randint(0, VOCAB, (len(POSITIONS), 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(Dice(5), ids=ids), noise(Dice(5)).gather(1, ids))


def test_the_control_noise_by_column_instead_of_id_is_caught():
    ids = torch.arange(40).flip(0).expand(len(POSITIONS), 40)
    assert not torch.equal(noise(Dice(5), ids=ids), noise(Dice(5))[:, :40])


def test_seeds_positions_and_purposes_have_noise_of_their_own():
    base = noise(Dice(5))
    assert abs(float(torch.corrcoef(torch.stack([base[0], base[1]]))[0, 1])) < 0.06
    assert abs(float(torch.corrcoef(torch.stack([base[0], noise(Dice(6))[0]]))[0, 1])) < 0.06
    clusters = Dice(5).cluster_gumbel(torch.zeros(len(POSITIONS), VOCAB), POSITIONS)
    assert abs(float(torch.corrcoef(torch.stack([base[0], clusters[0]]))[0, 1])) < 0.06


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("stage", [0, 2])
def test_uniforms_are_uniform(use, stage):
    found = uniforms(5000, stage=stage, use=use)
    assert found.dtype is torch.float64
    assert 0 < float(found.min()) < float(found.max()) < 1
    assert kstest(found.numpy(), "uniform").pvalue > 1e-4


def test_no_number_serves_two_purposes():
    drawn = [uniforms(300, seed, stage, use) for seed in (0, 1) for stage in (0, 1, 2) for use in USES]
    table = torch.stack(drawn)
    assert len(table.unique()) == table.numel()
    assert float((torch.corrcoef(table) - torch.eye(len(table))).abs().max()) < 0.25


def test_uniforms_are_stateless():
    assert torch.equal(Dice(3).uniform([9, 2], 1, "draw"), torch.cat([Dice(3).uniform([p], 1, "draw") for p in (9, 2)]))
    with pytest.raises(KeyError):
        Dice(3).uniform([1], 0, "luck")

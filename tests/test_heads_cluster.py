"""Balanced clustering: a partition, the same one for the same seed, and better than chance."""

import sys

import pytest
import torch
from shelf import refused
from torch.nn import functional as F

from flashspec.heads import cluster
from flashspec.heads.cluster import Clusters, Recipe, assign_balanced, from_assignments, nearest


def rows(count, width=24, seed=0):
    """Rows around thirty directions of very unequal popularity, with lengths that vary."""
    dice = torch.Generator().manual_seed(seed)
    heads = torch.randn(30, width, generator=dice)
    popular = (torch.rand(count, generator=dice) ** 3 * 30).long()
    lengths = torch.rand(count, 1, generator=dice) + 0.5
    return lengths * F.normalize(heads[popular] + 0.3 * torch.randn(count, width, generator=dice), dim=1)


def iterations(monkeypatch, lloyd, balanced):
    monkeypatch.setattr(sys.modules[Recipe.__module__], "LLOYD", lloyd)
    monkeypatch.setattr(sys.modules[Recipe.__module__], "BALANCED", balanced)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("vocab", [640, 641, 655, 1000])
@pytest.mark.parametrize("size", [1, 5, 16, 64])
def test_every_cluster_has_its_size_and_every_id_stands_once(vocab, size, backend, monkeypatch):
    weight = rows(vocab)
    iterations(monkeypatch, 2, 1)
    found = cluster(weight, Recipe(size, backend=backend))
    assert found.members.shape == (-(-vocab // size), size)
    assert torch.equal(found.members[found.members >= 0].sort().values, torch.arange(vocab))
    assert (found.members < 0).sum() == -vocab % size and (found.members[:, 0] >= 0).all()
    for number, ids in enumerate(found.members):
        mine = ids[ids >= 0]
        assert (found.assignments[mine] == number).all()
        centre = F.normalize(weight[mine], dim=1).mean(0) * weight[mine].norm(dim=1).mean()
        assert torch.allclose(found.centroids[number], centre, atol=1e-5)


def test_nearest_centroids_alone_are_not_balanced():
    points = F.normalize(rows(640), dim=1)
    centroids = points[:40]
    assert torch.bincount(nearest(points, centroids), minlength=40).max() > 16
    refused("clusters of 16 expected", Clusters, nearest(points, centroids), 16, centroids)


def test_the_auction_gives_a_full_cluster_to_its_highest_bidders_and_ends_when_every_point_is_the_same():
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    assert assign_balanced(points, torch.eye(2), 2).tolist() == [0, 0, 1, 1]
    points = F.normalize(torch.ones(1000, 8), dim=1)
    placed = assign_balanced(points, F.normalize(torch.randn(250, 8, generator=torch.Generator().manual_seed(0)), dim=1), 4)
    assert (torch.bincount(placed, minlength=250) == 4).all()


def cohesion(found, weight):
    """Mean cosine of a row and the direction of its cluster."""
    return F.cosine_similarity(weight, found.centroids[found.assignments]).mean().item()


def test_clusters_are_tighter_than_chance_and_iterations_help(monkeypatch):
    weight = rows(2000)
    chance, settled = from_assignments(weight, torch.arange(2000) % 125, 16), cluster(weight, Recipe(backend="torch"))
    iterations(monkeypatch, 0, 1)
    first = cluster(weight, Recipe(backend="torch"))
    assert cohesion(chance, weight) + 0.3 < cohesion(first, weight) < cohesion(settled, weight)


def test_only_the_direction_of_a_row_decides_its_cluster():
    weight = rows(500)
    lengths = 2.0 ** torch.randint(-2, 3, (500, 1), generator=torch.Generator().manual_seed(5))
    recipe = Recipe(16, backend="torch")
    assert torch.equal(cluster(weight, recipe).members, cluster(lengths * weight, recipe).members)

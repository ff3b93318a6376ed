"""How long a FlashHead takes to build, part by part. Weights are made up: products of low rank plus noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.heads.cluster import Recipe, balanced, unconstrained
from flashspec.heads.flash import FlashHead, FlashPlan
from flashspec.measure.stand_ins import low_rank_rows
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least


@dataclass(frozen=True)
class Params:
    """Which heads to build."""

    vocabs: tuple[int, ...] = (16384, 65536, 151936)  # ids
    widths: tuple[int, ...] = (1024,)  # of a hidden row
    cluster_sizes: tuple[int, ...] = (16,)  # ids a cluster
    rank: int = 64  # of the weights, beside noise of half their size
    backend: str = "auto"  # faiss, torch, or auto for faiss where it is installed
    repeats: int = 1  # builds of every head
    seed: int = 0  # of weights and clusters

    def __post_init__(self) -> None:
        at_least(self, vocabs=2, widths=8, cluster_sizes=1, rank=1, repeats=1)
        Recipe(backend=self.backend)
        if self.rank > min(self.widths) or max(self.cluster_sizes) > min(self.vocabs):
            raise ValueError("rank must be at most the smallest of widths, and cluster_sizes at most the smallest of vocabs")


class Row(NamedTuple):
    """One build: seconds of the iterations without and with the size constraint, and of putting the rows in order."""

    vocab: int
    hidden: int
    cluster_size: int
    threads: int
    clustering_seconds: float
    balancing_seconds: float
    permutation_seconds: float
    repeat: int


def measure(params: Params) -> Iterator[Row]:
    """Build every head, one part after the other on the clock."""
    for vocab, width in product(params.vocabs, params.widths):
        weight = low_rank_rows(vocab, width, params.rank, seed=params.seed)
        for size, repeat in product(params.cluster_sizes, range(params.repeats)):
            recipe = Recipe(size, params.seed, backend=params.backend)
            yield Row(vocab, width, size, torch.get_num_threads(), *build_seconds(weight, recipe), repeat)


def build_seconds(weight: Tensor, recipe: Recipe) -> tuple[float, float, float]:
    """Seconds of clustering, of balancing, and of the permutation of a bfloat16 weight."""
    stored, times = weight.bfloat16(), [perf_counter()]
    centroids = unconstrained(weight, recipe)
    times.append(perf_counter())
    clusters = balanced(weight, centroids, recipe)
    times.append(perf_counter())
    FlashHead.build(stored, None, clusters, FlashPlan(recipe.cluster_size, seed=recipe.seed))
    times.append(perf_counter())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def points(params: Params) -> list[Params]:
    """One point a head."""
    axes = product(params.vocabs, params.widths, params.cluster_sizes)
    return [replace(params, vocabs=(vocab,), widths=(width,), cluster_sizes=(size,)) for vocab, width, size in axes]


SMOKE = Params(vocabs=(1024,), widths=(64,), cluster_sizes=(16,), rank=16)
EXPERIMENT = Experiment("head_build", Params, Row, measure, split=points, presets={"smoke": SMOKE})

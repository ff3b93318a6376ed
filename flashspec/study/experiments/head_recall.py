"""What approximate heads miss: agreement and covered probability on hidden rows of a draft, by token frequency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from flashspec.heads.cluster import METRICS, Clusters, Recipe, cluster
from flashspec.heads.flash import FlashHead, FlashPlan
from flashspec.heads.index import usable
from flashspec.heads.recall import calibrate_always, required_probes
from flashspec.heads.registry import HEADS
from flashspec.study.experiment import Experiment
from flashspec.study.held_out import LIVE, HeldOut, Source, held_out, judged, probes_within
from flashspec.study.pairs import among, at_least, folders

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Params:
    """Which heads to judge, on whose rows."""

    target: str = "reference"  # target model, which writes the texts: shipped name or folder
    draft: str = "main"  # draft whose rows are judged: shipped name or folder
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 12  # prompts of each kind; every second text is for calibration
    new_tokens: int = 96  # tokens that the target writes behind each prompt
    temperature: float = 1.0  # of these texts
    metrics: tuple[str, ...] = ("spherical", "euclidean")  # how rows are clustered
    homes: tuple[int, ...] = (1, 2)  # clusters that list an id
    cluster_sizes: tuple[int, ...] = (8, 16, 32, 64)  # ids a cluster
    shares: tuple[float, ...] = (0.1, 0.2)  # rows scored at most, centroids included; the default probes come beside them
    always: int = 64  # calibrated ids that are always scored
    heads: tuple[str, ...] = ("int8", "int4", "preview", "fr_spec", "vocab_trim", "ivf", "ivfpq", "hnsw")  # heads beside it
    edges: tuple[int, ...] = (64, 512)  # frequency ranks at which bands end
    seed: int = 0  # of texts and clusters

    def __post_init__(self) -> None:
        among("metrics", self.metrics, METRICS)
        among("heads", self.heads, [name for name in HEADS if name not in LIVE])
        at_least(self, per_kind=2, new_tokens=1, shares=0, always=1, edges=1)
        if self.metrics:
            at_least(self, homes=1, cluster_sizes=1)

    @property
    def source(self) -> Source:
        """Where the rows come from."""
        return Source(self.target, self.draft, self.prompts, self.per_kind, self.new_tokens, self.temperature, self.seed)


class Row(NamedTuple):
    """One head in one band of frequency: positions, how many agree, and the dense probability mass that was scored.

    `metric`, `homes`, `cluster_size`, `probes`, `always` and `required_*` (percentiles of the probes that each position
    needs) are a FlashHead's; `plan` is "default" at the head's own probes, else the share of rows asked for.
    """

    head: str
    metric: str
    homes: int
    cluster_size: int
    always: int
    probes: int
    plan: str
    rows_scored: int
    vocab: int
    bytes: int
    band: str
    positions: int
    agreed: int
    covered: float
    required_50: int | None
    required_90: int | None
    required_99: int | None


def measure(params: Params) -> Iterator[Row]:
    """Compare heads with the dense one on rows that the draft computes over held-out text, faiss's where it is installed."""
    held = held_out(params.source)
    for name in usable(params.heads):
        head = held.head(name)
        yield from banded(held, head, params, facts=(name, "", 0, 0, 0, 0, "default"))
    for metric, size in product(params.metrics, params.cluster_sizes):
        recipe = Recipe(size, params.seed, metric=metric, homes=max(params.homes))
        clusters = cluster(held.draft.head_weight, recipe)
        for homes in params.homes:
            yield from of_clusters(held, replace(clusters, second=clusters.second if homes == 2 else None), params, metric)


def of_clusters(held: HeldOut, clusters: Clusters, params: Params, metric: str) -> Iterator[Row]:
    """A FlashHead over these clusters, plain and, if it misses any, calibrated, at its default probes and each share of rows."""
    plan = FlashPlan(clusters.size, metric=metric, homes=clusters.homes, seed=params.seed)
    plain = FlashHead.build(held.draft.head_weight, held.draft.norm, clusters, plan)
    chronic = calibrate_always(plain, held.dense, held.tuning, params.always)
    for head in (plain, plain.with_always(chronic)) if chronic else (plain,):
        needed = required_probes(head, held.dense, held.judging)
        probes = {"default": plain.probes} | {f"{share:g}": probes_within(head, share) for share in params.shares}
        for label, count in probes.items():
            facts = ("flash", metric, clusters.homes, clusters.size, len(head.plan.always), count, label)
            yield from banded(held, head.with_probes(count), params, facts, needed)


def banded(held: HeldOut, head: Any, params: Params, facts: tuple, needed: Tensor | None = None) -> Iterator[Row]:
    """One row a band of frequency."""
    same, mass = judged(head, held)
    cost = (head.rows_scored, head.vocab_size, head.bytes_read(1))
    for band, inside in held.bands(params.edges).items():
        counts = (int(inside.sum()), int(same[inside].sum()), round(float(mass[inside].double().sum()), 3))
        cells = (*facts, *cost, band, *counts, *percentiles(needed, inside))
        yield Row(*cells)


def percentiles(needed: Tensor | None, inside: Tensor) -> list[int | None]:
    """The probes within which 50, 90 and 99 % of these positions find their id; None without positions or clusters."""
    if needed is None or not bool(inside.any()):
        return [None] * len(PERCENTILES)
    ordered = needed[inside].sort().values
    return [int(ordered[-(-len(ordered) * percent // 100) - 1]) for percent in PERCENTILES]


def points(params: Params) -> list[Params]:
    """One point a clustering, and one for the other heads."""
    others = [replace(params, metrics=())] if params.heads else []
    pairs = product(params.metrics, params.cluster_sizes)
    return others + [replace(params, metrics=(m,), cluster_sizes=(size,), heads=()) for m, size in pairs]


SMOKE = Params(per_kind=2, new_tokens=8, metrics=("spherical",), cluster_sizes=(64,), shares=(0.2,), heads=("int8", "fr_spec"))
EXPERIMENT = Experiment(
    "head_recall", Params, Row, measure, measured=False, split=points, models=folders, presets={"smoke": SMOKE}
)

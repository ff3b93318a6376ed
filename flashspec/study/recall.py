"""What approximate heads miss on rows of a draft, by kind and token frequency, and how long they take to build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.candidates import usable
from flashspec.heads.cluster import Recipe, balanced, unconstrained
from flashspec.heads.flash import FlashHead, calibrate_always
from flashspec.heads.registry import HEADS
from flashspec.parameters import presets_of
from flashspec.study.drafts import drafts_of, folders, short_name
from flashspec.study.experiment import Experiment
from flashspec.study.held_out import LIVE, HeldOut, held_out, judged
from flashspec.study.racers import dtype_of, format_of
from flashspec.typed import among, at_least

TIMED = ("clustering_seconds", "balancing_seconds", "permutation_seconds", "threads")


@dataclass(frozen=True)
class Params:
    """Which heads to judge on whose rows, or which to build. Every list also takes a single value."""

    target: str = "reference"  # target that writes the texts: shipped name or folder
    draft: tuple[str, ...] = ("main",)  # drafts whose rows are judged: shipped names or folders; empty means every shipped one
    shape: tuple[str, ...] = ()  # made-up heads to build instead, IDSxWIDTH such as 65536x1024; empty means the draft's own
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 12  # prompts of each kind; every second text is for calibration
    new_tokens: int = 96  # tokens that the target writes after each prompt
    temperature: float = 1.0  # temperature of the target's texts; 0 is greedy
    head: tuple[str, ...] = ("int8", "fr_spec")  # heads to judge; flash is the draft's own FlashHead
    cluster_size: tuple[int, ...] = (16,)  # ids per cluster of FlashHeads to build and judge beside them
    share: tuple[float, ...] = (0.1, 0.2)  # largest shares of rows scored, centroids included; the default probes run too
    always: int = 64  # calibrated ids that are always scored
    edge: tuple[int, ...] = (64, 512)  # frequency ranks at which bands end
    rank: int = 64  # rank of made-up weights, which also get noise of half their size
    backend: str = "auto"  # what clusters: faiss, torch, or auto (faiss where it is installed)
    repeats: int = 1  # builds of every made-up head
    seed: int = 0  # seed of texts, weights and clusters

    def __post_init__(self) -> None:
        among(self, head=[name for name in HEADS if name not in LIVE])
        at_least(self, per_kind=2, new_tokens=1, share=0, always=1, edge=1, rank=1, repeats=1)
        _ = [self.recipe(size) for size in (1, *self.cluster_size)]  # which refuse what they cannot be
        for ids, width in map(ids_and_width, self.shape):
            if self.rank > width or max(self.cluster_size, default=1) > ids:
                raise ValueError(f"rank must be at most the width, and cluster_size at most the ids, of shape {ids}x{width}")

    def recipe(self, cluster_size: int) -> Recipe:
        """How rows are clustered."""
        return Recipe(cluster_size, self.seed, backend=self.backend)


@dataclass(frozen=True)
class Row:
    """One head on one kind of text in one band of frequency, or one build of a made-up head, which has no `kind`.

    Of `positions` rows, `agreed` have the dense head's best id; `covered` sums the dense probability of the scored ids. A
    FlashHead fills `metric` to `probes` and the seconds of its build; `required_50` to `required_99` are of older tables;
    `plan` is "default" at its own probes, else the requested share of rows. `kind` is "all" where kinds were not separated.
    """

    target: str
    draft: str
    head: str
    format: str
    vocab: int
    hidden: int
    rows_scored: int
    bytes: int
    metric: str = ""
    homes: int = 0
    cluster_size: int = 0
    always: int = 0
    probes: int = 0
    plan: str = "default"
    kind: str = ""
    band: str = ""
    positions: int = 0
    agreed: int = 0
    covered: float = 0.0
    required_50: int | None = None
    required_90: int | None = None
    required_99: int | None = None
    clustering_seconds: float | None = None
    balancing_seconds: float | None = None
    permutation_seconds: float | None = None
    threads: int | None = None
    turn: int = 0


def measure(params: Params) -> Iterator[Row]:
    """Compare heads with the dense one on rows that a draft computes over held-out text, or time builds of made-up heads.

    Heads of faiss are compared where it is installed, FlashHeads once more with calibrated ids if they miss any.
    """
    for name, size in product(params.shape, params.cluster_size):
        weight = low_rank_rows(*ids_and_width(name), params.rank, seed=params.seed)
        for turn in range(params.repeats):
            head, facts = built(weight.bfloat16(), None, params.recipe(size))
            yield Row(target="", draft="", turn=turn, **facts, **costs(head, weight))
    texts = replace(params, head=(), cluster_size=())  # which every point has in common
    for draft in () if params.shape else params.draft or drafts_of(()):
        held, who = held_out(texts, draft), {"target": short_name(params.target), "draft": short_name(draft)}
        for name in usable(params.head):
            form = format_of(name, dtype_of(held.draft.vocabulary))
            yield from planned(held, held.head(name), params, {**who, "head": name, "format": form})
        for size in params.cluster_size:
            plain, facts = built(held.draft.head_weight, held.draft.norm, params.recipe(size))
            chronic = calibrate_always(plain, held.dense, held.tuning, params.always)
            for head in (plain, plain.with_plan(always=chronic)) if chronic else (plain,):
                yield from planned(held, head, params, {**who, **facts})


def low_rank_rows(vocab: int, width: int, rank: int, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Seeded weight [vocab, width], float32: products of rank `rank` plus noise of `noise` times their size.

    As in trained weights, many rows share directions that they can be clustered by.
    """
    dice = torch.Generator().manual_seed(seed)
    rows, directions = torch.randn(vocab, rank, generator=dice), torch.randn(rank, width, generator=dice)
    return torch.randn(vocab, width, generator=dice).mul_(noise).addmm_(rows, directions, alpha=rank**-0.5)


def built(weight: Tensor, norm: Any, recipe: Recipe) -> tuple[FlashHead, dict[str, Any]]:
    """A FlashHead over weight [V, D], its clustering, and the seconds of every part of its build."""
    start = perf_counter()
    centroids = unconstrained(weight, recipe)
    found = perf_counter()
    clusters = balanced(weight, centroids, recipe)
    even = perf_counter()
    head = FlashHead.build(weight, norm, clusters)
    parts = dict(zip(TIMED, (found - start, even - found, perf_counter() - even, torch.get_num_threads()), strict=True))
    return head, {**clustered(head), "head": "flash", "format": dtype_of(weight), **parts}


def clustered(head: FlashHead) -> dict[str, Any]:
    """The columns that say how a FlashHead's rows are clustered: by direction, or for the queries of a model."""
    metric = "spherical" if head.clusters.spherical else "queries"
    return {"metric": metric, "homes": 1, "cluster_size": head.clusters.size}


def planned(held: HeldOut, head: Any, params: Params, facts: dict[str, Any]) -> Iterator[Row]:
    """A FlashHead at its own probes and at each share of rows; any other head as it is."""
    if not isinstance(head, FlashHead):
        yield from banded(held, head, params, facts)
        return
    for label, each in {"default": head, **{f"{share:g}": head.within(share) for share in params.share}}.items():
        setting = {**clustered(head), "always": len(head.plan.always), "probes": each.probes, "plan": label}
        yield from banded(held, head.with_plan(probes=each.probes), params, {**facts, **setting})


def banded(held: HeldOut, head: Any, params: Params, facts: dict[str, Any]) -> Iterator[Row]:
    """One row per kind of text and band of frequency that has positions."""
    same, mass = judged(head, held)
    for kind, (band, ranked) in product(dict.fromkeys(held.kinds), held.bands(params.edge).items()):
        inside = ranked & torch.tensor([each == kind for each in held.kinds])
        if bool(inside.any()):
            counts: dict[str, Any] = {"positions": int(inside.sum()), "agreed": int(same[inside].sum())}
            covered = round(float(mass[inside].double().sum()), 3)
            yield Row(kind=kind, band=band, covered=covered, **facts, **counts, **costs(head, held.draft.head_weight))


def costs(head: Any, weight: Tensor) -> dict[str, Any]:
    """The columns that say what a head over this weight reads per row."""
    vocab, hidden = weight.shape
    return {"vocab": vocab, "hidden": hidden, "rows_scored": head.rows_scored, "bytes": head.bytes_read(1)}


def ids_and_width(shape: str) -> tuple[int, int]:
    """The two numbers of IDSxWIDTH; ValueError for anything else."""
    ids, _, width = shape.partition("x")
    if not (ids.isdecimal() and width.isdecimal() and int(ids) > 1 and int(width) > 7):
        raise ValueError(f"shape must be IDSxWIDTH, at least 2x8, such as 65536x1024, got {shape!r}")
    return int(ids), int(width)


def points(params: Params) -> list[Params]:
    """One point per clustering, and one for the other heads, of every draft or shape."""
    sizes: list[dict[str, Any]] = [{"cluster_size": (size,), "head": ()} for size in params.cluster_size]
    if params.shape:
        return [replace(params, shape=(name,), **size) for name, size in product(params.shape, sizes)]
    others: list[dict[str, Any]] = [{"cluster_size": ()}] if params.head else []
    return [replace(params, draft=(name,), **each) for name in params.draft or drafts_of(()) for each in others + sizes]


PRESETS = presets_of("recall", Params)
EXPERIMENT = Experiment(
    "recall", Params, Row, measure, split=points, models=lambda p: {} if p.shape else folders(p), presets=PRESETS, timed=TIMED
)

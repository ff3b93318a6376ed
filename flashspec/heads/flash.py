"""FlashHead (arXiv 2603.14591): score the clusters, then exactly the rows of the best of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.heads.aware import asked_of, cluster_for
from flashspec.heads.base import Norm, project, project_blocks, weight_of, widened
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.storage import AGAIN, FILE, HeadFile, StoredHead
from flashspec.heads.table import FlashPlan, Table, build_table, stage_one
from flashspec.sampling import Dice, Scores
from flashspec.typed import typed

CHOICES = ("cluster_size", "seed")  # of a clustering


@dataclass(frozen=True)
class FlashHead(StoredHead):
    """Approximate scores at the cost of few rows; logits it gives are exact, ids it does not list count as -inf.

    `weight` is the model's own, in the order of the vocabulary; `table` is the permuted copy that is read.
    """

    norm: Norm | None
    weight: Tensor | kernels.Packed
    clusters: Clusters
    plan: FlashPlan
    table: Table
    key, file = "flash_head", FILE

    @classmethod
    @typed
    def build(
        cls,
        weight: Tensor | kernels.Packed,
        norm: Norm | None = None,
        clusters: Clusters | None = None,
        queries: Tensor | None = None,
        **changes: Any,
    ) -> FlashHead:
        """Cluster weight [vocab, hidden] (unless `clusters` are given) and permute it.

        With `queries`, hidden rows [n, hidden] before the norm, clusters are made for them, and the ids likeliest
        behind them are scored always unless the plan names others; without, clusters are by direction. `changes`
        are fields of FlashPlan, or cluster_size and seed. Raises ValueError for a plan that does not fit.
        """
        weight = weight_of(weight)
        chosen = {name: changes.pop(name) for name in CHOICES if name in changes}
        if clusters is not None and chosen:
            raise ValueError(f"{next(iter(chosen))} is a choice of clustering, and clusters are given; give one or the other")
        plan = FlashPlan().changed(changes)
        asked = None if queries is None else asked_of(weight, queries, norm)
        if clusters is None:
            recipe, points = Recipe(**chosen), widened(weight)
            clusters = cluster(points, recipe) if asked is None else cluster_for(points, asked, recipe)
        if asked is not None and not plan.always:
            plan = plan.changed({"always": asked.always})
        if (clusters.vocab_size, *clusters.centroids.shape) != (weight.shape[0], clusters.count, weight.shape[1]):
            raise ValueError(
                f"these clusters are of {clusters.vocab_size} ids with centroids {list(clusters.centroids.shape)}, not of "
                f"{clusters.count} clusters of a weight of shape {list(weight.shape)}"
            )
        plan = plan.resolve(clusters)
        return cls(norm, weight, clusters, plan, build_table(weight, clusters, plan))

    @cached_property
    def scoring(self) -> kernels.Scoring | None:  # type: ignore[override]
        """Norm, clusters, choice and blocks in one call of the compiled kernels."""
        table = self.table
        return self.compiled(table.directions, kernels.Blocks(table.blocks, table.ids, table.bias, self.probes, table.forced))

    @property
    def probes(self) -> int:
        """Clusters scored for each row."""
        return self.plan.probes or 1

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row: centroids, probed and always-scored rows, with padding."""
        return self.table.clusters + (self.probes + self.table.forced) * self.table.slots

    def bytes_read(self, rows: int) -> int:
        """Centroids (in stage 1's format) and always-scored blocks once, probed blocks once for each row."""
        blocks = self.table.forced + rows * self.probes
        return self.table.directions.nbytes + blocks * (self.table.blocks.nbytes // len(self.table.ids))

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, (B + probes) * slots] of rows [n, hidden], B always-scored blocks first."""
        fast = self.scored(rows)
        if fast is not None:
            return fast
        states, table = self.states(rows), self.table
        chosen = self.blocks_of(states)
        logits = project_blocks(states, table.blocks, chosen) + table.bias[chosen]
        return Scores(table.ids[chosen].flatten(1), logits.flatten(1))

    def blocks_of(self, states: Tensor) -> Tensor:
        """Numbers [n, B + probes] of the blocks that normalised rows [n, hidden] are scored against."""
        table = self.table
        chosen = kernels.best_numbers(project(states, table.directions), self.probes)
        if not table.forced:
            return chosen
        forced = torch.arange(table.clusters, len(table.ids), device=chosen.device)
        return torch.cat((forced.expand(len(chosen), -1), chosen), 1)

    def with_plan(self, **changes: Any) -> FlashHead:
        """This head with another plan; rows are permuted anew where `always` changes, and the clusters stay."""
        plan, table = self.plan.changed(changes).resolve(self.clusters), self.table
        if plan.always != self.plan.always:
            return FlashHead.build(self.weight, self.norm, self.clusters, **asdict(plan))
        if plan.stage1 != self.plan.stage1:
            table = table._replace(directions=stage_one(self.clusters, self.weight, plan.stage1))
        return replace(self, plan=plan, table=table)

    @typed
    def with_probes(self, probes: int) -> FlashHead:
        """This head with another number of probes; nothing is copied."""
        return self.with_plan(probes=probes)

    def within(self, share: float) -> FlashHead:
        """This head with the most probes that score at most this share of the vocabulary, centroids included."""
        spare = int(share * self.vocab_size) - (self.rows_scored - self.probes * self.table.slots)
        return self.with_probes(min(self.table.clusters, max(1, spare // self.table.slots)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Clusters and plan."""
        tensors = {"members": self.clusters.members.int(), "centroids": self.clusters.centroids}
        return tensors, {"plan": asdict(self.plan), "spherical": self.clusters.spherical}

    @classmethod
    def restored(cls, file: HeadFile, weight: Tensor | kernels.Packed, norm: Norm | None) -> FlashHead:
        """The clusters of a file, over the weight permuted anew."""
        return cls.build(weight, norm, _clusters(file, weight), **asdict(file.fact("plan", FlashPlan)))


def _clusters(file: HeadFile, weight: Tensor | kernels.Packed) -> Clusters:
    """The clusters that a file holds for this weight; ValueError where they cannot be."""
    members, means, vocab = file.numbers("members", 2).long(), file.tensors.get("centroids"), weight.shape[0]
    count, listed = len(members), members >= 0
    if not bool(listed.any(1).all()) or not torch.equal(members[listed].sort().values, torch.arange(vocab)):
        raise ValueError(f"a clustering lists each of the {vocab} ids once, but this one does not; {AGAIN}")
    if means is None or means.dtype is not torch.float32 or means.ndim != 2 or len(means) != count:
        raise ValueError(f"{file.path.name} has no float32 centroid for each of its {count} clusters; {AGAIN}")
    assignments = torch.empty(vocab, dtype=torch.int64)
    assignments[members[listed]] = listed.nonzero()[:, 0]
    spherical = file.facts.get("spherical", True) is not False
    place = weight.device
    return Clusters(assignments.to(place), members.to(place), means.to(place), spherical)

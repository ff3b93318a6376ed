"""FlashHead (arXiv 2603.14591): score the clusters, then exactly the rows of the best of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec.heads.base import Norm, check_rows, fused, project, project_blocks, weight_of
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.table import Table, build_table
from flashspec.scores import Dice, Scores

SELECTIONS = ("top", "sample")


@dataclass(frozen=True)
class FlashPlan:
    """What a FlashHead scores.

    `probes` clusters of `cluster_size` rows are scored for each hidden row (None: one cluster in sixteen, as the authors'
    released code does), and the ids in `always` in any case. `selection` "top" takes the best clusters; "sample" draws them
    without replacement from softmax(centroids . row / temperature), so that every id can be drafted. `seed` is the
    clustering's.
    """

    cluster_size: int = 16
    probes: int | None = None
    always: tuple[int, ...] = ()
    seed: int = 0
    selection: str = "top"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if not self.temperature > 0:
            raise ValueError(
                f"the temperature of cluster sampling must be above 0, got {self.temperature}; or use selection='top'"
            )
        if len(set(self.always)) < len(self.always):
            raise ValueError("always lists an id twice; list each once")

    def resolve(self, clusters: Clusters) -> FlashPlan:
        """This plan for these clusters, probes filled in; ValueError where it asks for more than there is."""
        probes = self.probes if self.probes is not None else -(-clusters.count // 16)
        if probes > clusters.count:
            raise ValueError(f"probes must be at most the {clusters.count} clusters of this head, got {probes}")
        wrong = [v for v in self.always if not 0 <= v < clusters.vocab_size]
        if wrong:
            raise ValueError(f"always holds id {wrong[0]}, but this head's ids run from 0 to {clusters.vocab_size - 1}")
        return replace(self, probes=probes, cluster_size=clusters.size)


@dataclass(frozen=True)
class FlashHead:
    """Approximate scores at the cost of few rows; logits it gives are exact, ids it does not list count as -inf.

    `weight` keeps the order of the vocabulary (no copy of the model's own); `table` is the permuted copy that is read.
    """

    norm: Norm
    weight: Tensor
    clusters: Clusters
    plan: FlashPlan
    table: Table

    @classmethod
    def build(
        cls,
        weight: Tensor,
        norm: Norm | None = None,
        clusters: Clusters | None = None,
        plan: FlashPlan | None = None,
        **changes: Any,
    ) -> FlashHead:
        """Cluster weight [vocab, hidden] (unless `clusters` are given) and permute it.

        `changes` are fields of FlashPlan. Raises ValueError for a plan that does not fit the weight.
        """
        weight = weight_of(weight)
        plan = replace(plan or FlashPlan(), **_known(changes))
        clusters = clusters or cluster(weight, Recipe(plan.cluster_size, plan.seed))
        if (clusters.vocab_size, clusters.centroids.shape[1]) != weight.shape:
            raise ValueError(f"these clusters are of {clusters.vocab_size} ids, not of a weight of shape {list(weight.shape)}")
        plan = plan.resolve(clusters)
        return cls(fused(norm), weight, clusters, plan, build_table(weight, clusters, plan.always))

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1, whether or not a call scores them."""
        return self.clusters.vocab_size

    @property
    def probes(self) -> int:
        """Clusters scored for each row."""
        return self.plan.probes or 1

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row: centroids, probed rows and always-scored rows, padding included."""
        return self.table.clusters + (self.probes + self.table.forced) * self.clusters.size

    def bytes_read(self, rows: int) -> int:
        """Centroids and always-scored blocks once, probed blocks once for each row."""
        once = self.table.clusters + self.table.forced * self.clusters.size
        return (once + rows * self.probes * self.clusters.size) * self.weight.shape[1] * self.weight.element_size()

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, (B + probes) * cluster_size] of rows [n, hidden], B blocks of always-scored ids first."""
        check_rows(rows, self.weight.shape[1])
        states, table = self.norm(rows), self.table
        chosen = self.choose(project(states, table.directions), positions, dice)
        if table.forced:
            chosen = torch.cat((_forced(table, len(rows)), chosen), 1)
        logits = project_blocks(states, table.blocks, chosen)
        if table.masked:
            logits = logits + table.bias[chosen]
        return Scores(table.ids[chosen].flatten(1), logits.flatten(1))

    def choose(self, likeness: Tensor, positions: Tensor | None, dice: Dice | None) -> Tensor:
        """Clusters [n, probes] to probe, from likeness [n, K] of row and centroid directions.

        Sampling adds Gumbel noise to centroids . row / temperature and takes the top (Kool et al. 2019): a draw without
        replacement, in which the noise is a function of (seed, position, cluster).
        """
        if self.plan.selection == "sample":
            if positions is None or dice is None:
                raise ValueError("a head that samples its clusters needs the rows' positions and dice")
            scaled = likeness * self.table.lengths / self.plan.temperature
            likeness = scaled + dice.cluster_gumbel(scaled, positions)
        return likeness.topk(self.probes, sorted=False).indices

    def with_plan(self, **changes: Any) -> FlashHead:
        """This head with another probes, selection or temperature; nothing is copied."""
        plan = replace(self.plan, **_known(changes))
        fixed = ("cluster_size", "seed", "always")
        if any(getattr(plan, name) != getattr(self.plan, name) for name in fixed):
            raise ValueError("cluster_size, seed and always are fixed in a built head; use with_always, or build another")
        return replace(self, plan=plan.resolve(self.clusters))

    def with_probes(self, probes: int) -> FlashHead:
        """This head with another number of probes; nothing is copied."""
        return self.with_plan(probes=probes)

    def with_always(self, always: tuple[int, ...]) -> FlashHead:
        """This head with other always-scored ids; the rows are permuted anew, the clusters stay."""
        return FlashHead.build(self.weight, self.norm, self.clusters, self.plan, always=tuple(always))

    def save(self, path: Path | str) -> None:
        """Write clusters and plan (not the weight) to a safetensors file, or into a folder under the usual name."""
        from flashspec.heads.storage import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: Path | str, weight: Tensor, norm: Norm | None = None) -> FlashHead:
        """Read what `save` wrote and permute the weight it was built from; ValueError where the weight is another one."""
        from flashspec.heads.storage import load

        clusters, plan = load(Path(path), weight_of(weight))
        return cls.build(weight, norm, clusters, plan)


def _forced(table: Table, rows: int) -> Tensor:
    """Numbers of the always-scored blocks, for every row [rows, B]."""
    numbers = torch.arange(table.clusters, len(table.blocks), device=table.ids.device)
    return numbers.expand(rows, -1)


def _known(changes: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in changes if name not in FlashPlan.__dataclass_fields__]
    if unknown:
        raise ValueError(f"FlashHead has no option {unknown[0]!r}; options: {', '.join(FlashPlan.__dataclass_fields__)}")
    if "always" in changes:
        changes = {**changes, "always": tuple(int(v) for v in changes["always"])}
    return changes

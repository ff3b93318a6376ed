"""FlashHead (arXiv 2603.14591): score the clusters, then exactly the rows of the best of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashspec import kernels
from flashspec.heads.base import Norm, WeightHead, fused, kernel_norm, project, project_blocks, weight_of, widened
from flashspec.heads.cluster import Clusters, Recipe, cluster
from flashspec.heads.storage import FILE, KEY, fact, load_state, save_state, stored
from flashspec.heads.table import FlashPlan, Table, assignments_of, build_table, known, stage_one
from flashspec.sampling import Dice, Scores
from flashspec.typed import typed


@dataclass(frozen=True)
class FlashHead(WeightHead):
    """Approximate scores at the cost of few rows; logits it gives are exact, ids it does not list count as -inf.

    `weight` keeps the order of the vocabulary (no copy of the model's own); `table` is the permuted copy that is read.
    """

    norm: Norm
    weight: Tensor
    clusters: Clusters
    plan: FlashPlan
    table: Table

    @classmethod
    @typed
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
        plan = replace(plan or FlashPlan(), **known(changes))
        clusters = clusters or cluster(weight, Recipe(plan.cluster_size, plan.seed, metric=plan.metric, homes=plan.homes))
        if (clusters.vocab_size, *clusters.centroids.shape) != (len(weight), clusters.count, weight.shape[1]):
            raise ValueError(
                f"these clusters are of {clusters.vocab_size} ids with centroids {list(clusters.centroids.shape)}, not of "
                f"{clusters.count} clusters of a weight of shape {list(weight.shape)}"
            )
        plan = plan.resolve(clusters)
        return cls(fused(norm), weight, clusters, plan, build_table(weight, clusters, plan))

    @cached_property
    def scoring(self) -> kernels.Scoring | None:
        """Norm, clusters, choice and blocks in one call of the compiled kernels; None where they do not serve this plan."""
        norm = kernel_norm(self.norm)
        if norm is None or self.plan.selection != "top" or self.plan.best or self.table.twins is not None:
            return None
        table = self.table
        blocks = kernels.Blocks(table.blocks, table.ids, table.bias, self.probes, table.forced)
        return kernels.scoring(*norm, table.directions, blocks)

    @property
    def probes(self) -> int:
        """Clusters scored for each row."""
        return self.plan.probes or 1

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row: centroids, probed rows and always-scored rows, padding included."""
        return self.table.clusters + (self.probes + self.table.forced) * self.table.slots

    def bytes_read(self, rows: int) -> int:
        """Centroids (in stage 1's format) and always-scored blocks once, probed blocks once for each row."""
        blocks = self.table.forced + rows * self.probes
        return self.table.directions.nbytes + blocks * self.table.slots * self.hidden * self.weight.element_size()

    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, (B + probes) * slots] of rows [n, hidden], B blocks of always-scored ids first; [n, 1] of the best id."""
        fast = self.scored(rows)
        if fast is not None:
            return fast
        states, table = self.states(rows), self.table
        chosen = self.blocks_of(states, positions, dice)
        if self.plan.best:
            ids, logits = best_of(states, table, chosen)
            return Scores(ids[:, None], logits[:, None])
        logits = project_blocks(states, table.blocks, chosen) + table.bias[chosen]
        if table.twins is not None:
            logits = logits.masked_fill(_again(table.twins, chosen), -torch.inf)
        return Scores(table.ids[chosen].flatten(1), logits.flatten(1))

    def blocks_of(self, states: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Tensor:
        """Numbers [n, B + probes] of the blocks that normalised rows [n, hidden] are scored against."""
        chosen = self.choose(project(states, self.table.directions), positions, dice)
        return torch.cat((_forced(self.table, len(states)), chosen), 1) if self.table.forced else chosen

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
        return kernels.best_numbers(likeness, self.probes)

    def with_plan(self, **changes: Any) -> FlashHead:
        """This head with another probes, selection, temperature or stage1; no row is copied."""
        plan = replace(self.plan, **known(changes))
        fixed = ("cluster_size", "seed", "always", "metric", "homes")
        if any(getattr(plan, name) != getattr(self.plan, name) for name in fixed):
            raise ValueError(f"{', '.join(fixed)} are fixed in a built head; use with_always, or build another")
        table = self.table
        if plan.stage1 != self.plan.stage1:
            table = table._replace(directions=stage_one(self.clusters.centroids, self.weight.dtype, plan.stage1))
        return replace(self, plan=plan.resolve(self.clusters), table=table)

    @typed
    def with_probes(self, probes: int) -> FlashHead:
        """This head with another number of probes; nothing is copied."""
        return self.with_plan(probes=probes)

    @typed
    def with_always(self, always: tuple[int, ...]) -> FlashHead:
        """This head with other always-scored ids; the rows are permuted anew, the clusters stay."""
        return FlashHead.build(self.weight, self.norm, self.clusters, self.plan, always=tuple(always))

    def save(self, path: Path | str) -> None:
        """Write clusters and plan (not the weight) to a safetensors file, or into a folder under the usual name."""
        found = self.clusters
        tensors = {"members": found.members.int(), "centroids": found.centroids}
        second = {} if found.second is None else {"second": found.second.int()}
        save_state(_file(path), KEY, self.weight, tensors | second, {"plan": asdict(self.plan)})

    @classmethod
    @typed
    def load(cls, path: Path | str, weight: Tensor, norm: Norm | None = None) -> FlashHead:
        """Read what `save` wrote and permute the weight it was built from; ValueError where the weight is another one."""
        weight, path = weight_of(weight), _file(path)
        tensors, facts = load_state(path, KEY, weight)
        plan = fact(facts, "plan", FlashPlan, path)
        return cls.build(weight, norm, _clusters(tensors, weight, path), plan)


def _clusters(tensors: dict[str, Tensor], weight: Tensor, path: Path) -> Clusters:
    """The clusters that a file holds for this weight; ValueError where they cannot be."""
    members, means = stored(tensors, "members", 2, path).long(), tensors.get("centroids")
    second = stored(tensors, "second", 1, path).long() if "second" in tensors else None
    assignments, count = assignments_of(members, len(weight)), len(members)
    if means is None or means.dtype is not torch.float32 or means.ndim != 2 or len(means) != count:
        raise ValueError(f"{path.name} has no float32 centroid for each of its {count} clusters; build the head again")
    if second is not None and (len(second) != len(weight) or int(second.min()) < -1 or int(second.max()) >= count):
        raise ValueError(f"{path.name} has second homes outside its {count} clusters; build the head again")
    device = weight.device
    homes = None if second is None else second.to(device)
    return Clusters(assignments.to(device), members.to(device), means.to(device), homes)


def _file(path: Path | str) -> Path:
    """A file, or the one of the usual name in a folder."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def best_of(states: Tensor, table: Table, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Best id [n] and its logit [n] among the chosen blocks [n, P]; an id with two homes has one logit, so both may count."""
    return kernels.best_of_blocks(widened(states, table.blocks), table.blocks, table.ids, table.bias, chosen)


def _forced(table: Table, rows: int) -> Tensor:
    """Numbers of the always-scored blocks, for every row [rows, B]."""
    numbers = torch.arange(table.clusters, len(table.blocks), device=table.ids.device)
    return numbers.expand(rows, -1)


def _again(twins: Tensor, chosen: Tensor) -> Tensor:
    """Slots [n, P, slots] whose id is listed by another chosen block first."""
    probed = torch.zeros(len(chosen), len(twins) + 1, dtype=torch.bool, device=chosen.device).scatter_(1, chosen, True)
    return probed.gather(1, twins[chosen].flatten(1)).view(*chosen.shape, -1)

"""FlashHead (arXiv 2603.14591): score the clusters, then score the rows of the best ones exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec import kernels
from flashspec.heads.base import AGAIN, FILE, Head, HeadFile, Norm, StoredHead, project, project_blocks, weight_of, wide, widened
from flashspec.heads.cluster import Clusters, Recipe, asked_of, cluster, cluster_for
from flashspec.kernels import Packed, pack
from flashspec.kernels.integers import BITS, PANEL, Shelf
from flashspec.sampling import Scores
from flashspec.typed import changed, one_of, typed, whole_numbers

CHOICES = ("cluster_size", "seed")  # of a clustering
FORMATS = ("weight", "int8", "int4")
ROWS = 256  # scored at once where two heads are compared


@typed
@dataclass(frozen=True)
class FlashPlan:
    """What a FlashHead scores.

    The `probes` best clusters for each hidden row (None: one in sixteen), and always the ids in `always`. `stage1` is the
    format of the centroids ("weight": the weight's own).
    """

    probes: int | None = None
    always: tuple[int, ...] = ()
    stage1: str = "weight"

    def __post_init__(self) -> None:
        object.__setattr__(self, "always", whole_numbers("always", self.always))
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        one_of("stage1", self.stage1, FORMATS)
        if len(set(self.always)) < len(self.always):
            raise ValueError("always lists an id twice; list each once")

    def resolve(self, clusters: Clusters) -> FlashPlan:
        """This plan with probes filled in; ValueError where it asks for more than there is."""
        probes = self.probes if self.probes is not None else -(-clusters.count // 16)
        if probes > clusters.count:
            raise ValueError(f"probes must be at most the {clusters.count} clusters of this head, got {probes}")
        vocab = len(clusters.assignments)
        if wrong := [v for v in self.always if not 0 <= v < vocab]:
            raise ValueError(f"always holds id {wrong[0]}, but this head's ids run from 0 to {vocab - 1}")
        return replace(self, probes=probes)


class Table(NamedTuple):
    """K clusters of rows, then the blocks of always-scored rows; a block is contiguous and is scored as a unit.

    A slot that must not count (padding, or an always-scored id in its own cluster) has bias -inf and a valid id.
    """

    blocks: Tensor | Packed  # [K + B, slots, D] in the weight's dtype, or panels in its codes
    ids: Tensor  # [K + B, slots] int64
    bias: Tensor  # [K + B, slots], 0 or -inf
    directions: Tensor | Packed  # [K, D] unit or plain centroids, in the format of stage 1


def build_table(weight: Tensor | Packed, clusters: Clusters, plan: FlashPlan) -> Table:
    """Permute weight [V, D] once; the rows of the plan's `always` follow in blocks of their own.

    A packed weight stays packed where a cluster is a panel of sixteen rows, and is widened otherwise.
    """
    if isinstance(weight, Packed) and clusters.size != PANEL:
        weight = weight.dequantised()
    chosen = torch.tensor(plan.always, dtype=torch.int64, device=weight.device)
    always = F.pad(chosen, (0, -len(chosen) % clusters.size), value=-1).view(-1, clusters.size)
    members = torch.cat((clusters.members, always))
    off = members < 0
    off[: clusters.count] |= torch.isin(clusters.members, chosen)
    ids = members.where(members >= 0, members[:, :1])
    bias = torch.zeros(ids.shape, dtype=wide(weight), device=weight.device).masked_fill(off, -torch.inf)
    shelf = Shelf()
    if isinstance(weight, Packed):
        blocks: Tensor | Packed = weight.taken(ids.flatten())
    else:
        room = shelf.zeros((ids.numel(), weight.shape[1]), weight.dtype, weight.device)
        blocks = torch.index_select(weight, 0, ids.flatten(), out=room).view(*ids.shape, -1)
    return Table(blocks, shelf.moved(ids), shelf.moved(bias), stage_one(clusters, weight, plan.stage1))


def stage_one(clusters: Clusters, weight: Tensor | Packed, kind: str) -> Tensor | Packed:
    """The vectors that find clusters [K, D], directions or means, in the format `kind`."""
    means = clusters.centroids.to(wide(weight))
    unit = F.normalize(means, dim=1) if clusters.spherical else means
    if isinstance(weight, Packed) and kind == "weight":
        return pack(unit, BITS[weight.kind])
    return Shelf().moved(unit.to(weight.dtype)) if kind == "weight" else pack(unit, int(kind[3:]))


@dataclass(frozen=True, eq=False)
class FlashHead(StoredHead):
    """Approximate scores from few rows; the logits it gives are exact, ids it does not list count as -inf.

    `weight` is the model's own, in vocabulary order; `table` is the permuted copy that scoring reads.
    """

    clusters: Clusters
    plan: FlashPlan
    table: Table
    key, file = "flash_head", FILE

    @classmethod
    @typed
    def build(
        cls,
        weight: Tensor | Packed,
        norm: Norm | None = None,
        clusters: Clusters | None = None,
        queries: Tensor | None = None,
        **changes: Any,
    ) -> FlashHead:
        """Cluster weight [vocab, hidden] (unless `clusters` are given) and permute it.

        With `queries`, hidden rows [n, hidden] before the norm, clusters are query-aware and the likeliest ids after these
        rows are always scored, unless the plan names others. `changes` are fields of FlashPlan, or cluster_size and seed.
        Raises ValueError for a plan that does not fit.
        """
        weight = weight_of(weight)
        chosen = {name: changes.pop(name) for name in CHOICES if name in changes}
        if clusters is not None and chosen:
            raise ValueError(f"{next(iter(chosen))} is a choice of clustering, and clusters are given; give one or the other")
        asked = None if queries is None else asked_of(weight, queries, norm)
        plan = changed(FlashPlan(), ({} if asked is None else {"always": asked.always}) | changes, "a FlashHead")
        if clusters is None:
            recipe, points = Recipe(**chosen), widened(weight)
            clusters = cluster(points, recipe) if asked is None else cluster_for(points, asked, recipe)
        if (vocab := len(clusters.assignments), *clusters.centroids.shape) != (weight.shape[0], clusters.count, weight.shape[1]):
            raise ValueError(
                f"these clusters are of {vocab} ids with centroids {list(clusters.centroids.shape)}, not of "
                f"{clusters.count} clusters of a weight of shape {list(weight.shape)}"
            )
        plan = plan.resolve(clusters)
        return cls(norm, weight, clusters, plan, build_table(weight, clusters, plan))

    @cached_property
    def scoring(self) -> kernels.Scoring | None:
        table = self.table
        blocks = kernels.Blocks(*table[:3], self.probes, self.forced)
        return self.compiled(table.directions, blocks)

    @property
    def probes(self) -> int:
        """Clusters scored per row."""
        return self.plan.probes or 1

    @property
    def forced(self) -> int:
        """Blocks of always-scored rows, B."""
        return len(self.table.ids) - self.clusters.count

    @property
    def rows_scored(self) -> int:
        """Inner products per hidden row: centroids, probed and always-scored rows, with padding."""
        return self.clusters.count + (self.probes + self.forced) * self.clusters.size

    def bytes_read(self, rows: int) -> int:
        blocks = self.forced + rows * self.probes
        return self.table.directions.nbytes + blocks * (self.table.blocks.nbytes // len(self.table.ids))

    def score(self, states: Tensor) -> Scores:
        """Scores [n, (B + probes) * slots] of normalised rows, B always-scored blocks first."""
        table, chosen = self.table, self.blocks_of(states)
        logits = project_blocks(states, table.blocks, chosen) + table.bias[chosen]
        return Scores(table.ids[chosen].flatten(1), logits.flatten(1))

    def blocks_of(self, states: Tensor) -> Tensor:
        """Numbers [n, B + probes] of the blocks that normalised rows [n, hidden] are scored against."""
        table = self.table
        chosen = kernels.best_numbers(project(states, table.directions), self.probes)
        if not self.forced:
            return chosen
        forced = torch.arange(self.clusters.count, len(table.ids), device=chosen.device)
        return torch.cat((forced.expand(len(chosen), -1), chosen), 1)

    def with_plan(self, **changes: Any) -> FlashHead:
        """This head with another plan and the same clusters; rows are permuted again if `always` changes."""
        plan, table = changed(self.plan, changes, "a FlashHead").resolve(self.clusters), self.table
        if plan.always != self.plan.always:
            return FlashHead.build(self.weight, self.norm, self.clusters, **asdict(plan))
        if plan.stage1 != self.plan.stage1:
            table = table._replace(directions=stage_one(self.clusters, self.weight, plan.stage1))
        return replace(self, plan=plan, table=table)

    def within(self, share: float) -> FlashHead:
        """This head with the most probes that score at most this share of the vocabulary."""
        spare = int(share * self.vocab_size) - (self.rows_scored - self.probes * self.clusters.size)
        return self.with_plan(probes=min(self.clusters.count, max(1, spare // self.clusters.size)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"members": self.clusters.members.int(), "centroids": self.clusters.centroids}
        return tensors, {"plan": asdict(self.plan), "spherical": self.clusters.spherical}

    @classmethod
    def restored(cls, file: HeadFile, weight: Tensor | Packed, norm: Norm | None) -> FlashHead:
        members, means = file.numbers("members", 2).long(), file.tensors.get("centroids")
        vocab, count, listed = weight.shape[0], len(members), members >= 0
        if not bool(listed.any(1).all()) or not torch.equal(members[listed].sort().values, torch.arange(vocab)):
            raise ValueError(f"a clustering lists each of the {vocab} ids once, but this one does not; {AGAIN}")
        if means is None or means.dtype is not torch.float32 or means.ndim != 2 or len(means) != count:
            raise ValueError(f"{file.path.name} has no float32 centroid for each of its {count} clusters; {AGAIN}")
        assignments = torch.empty(vocab, dtype=torch.int64)
        assignments[members[listed]] = listed.nonzero()[:, 0]
        place, spherical = weight.device, file.facts.get("spherical", True) is not False
        clusters = Clusters(assignments.to(place), members.shape[1], means.to(place), spherical)
        return cls.build(weight, norm, clusters, **asdict(file.fact("plan", FlashPlan)))


def agreement(head: FlashHead, dense: Head, rows: Tensor) -> float:
    """Share of rows [n, hidden] whose best id is the dense head's."""
    same = [_best(head, part) == _best(dense, part) for part in _parts(rows)]
    return torch.cat(same).double().mean().item()


@torch.no_grad()
def required_probes(head: FlashHead, dense: Head, rows: Tensor) -> Tensor:
    """Probes [n] needed to score the dense head's best id; 0 where it is always scored."""
    found = list[Tensor]()
    always = torch.tensor(head.plan.always, dtype=torch.int64, device=rows.device)
    for part in _parts(rows):
        wanted, likeness = _best(dense, part), project(head.states(part), head.table.directions)
        mine = likeness.gather(1, head.clusters.assignments[wanted][:, None])
        found.append(((likeness > mine).sum(1) + 1).masked_fill(torch.isin(wanted, always), 0))
    return torch.cat(found)


def calibrate_always(head: FlashHead, dense: Head, rows: Tensor, count: int = 64) -> tuple[int, ...]:
    """Up to `count` ids to score always: the current ones, then those missed most often on rows [n, hidden]."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    wanted = torch.cat([_best(dense, part) for part in _parts(rows)])
    missed = wanted[required_probes(head, dense, rows) > head.probes]
    often = torch.bincount(missed, minlength=head.vocab_size)
    order = torch.argsort(often, descending=True, stable=True)[:count]
    return (*head.plan.always, *order[often[order] > 0].tolist())[:count]


def _best(head: Head, rows: Tensor) -> Tensor:
    scores = head(rows)
    return scores.pick(scores.logits.argmax(1))


def _parts(rows: Tensor) -> Iterator[Tensor]:
    if not len(rows):
        raise ValueError("at least one hidden row of held-out text is needed to compare two heads, got none")
    return iter(rows.split(ROWS))

"""A vocabulary weight in the order a clustered head reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.heads.cluster import Clusters, members_of
from flashspec.heads.plan import FlashPlan
from flashspec.kernels import Packed, pack
from flashspec.kernels.pages import Shelf


class Table(NamedTuple):
    """K clusters of rows, then the blocks of always-scored rows; a block is contiguous and probed as a whole.

    A slot that must not count (padding, or an always-scored id in its own cluster) has bias -inf and a valid id. Where ids
    have a second home, it stands behind the first homes of that cluster, and its `twins` names the block of its first home.
    """

    blocks: Tensor  # [K + B, slots, D], the weight's dtype
    ids: Tensor  # [K + B, slots] int64
    bias: Tensor  # [K + B, slots], 0 or -inf
    directions: Tensor | Packed  # [K, D] unit centroids, in the format of stage 1
    lengths: Tensor  # [K] lengths of the centroids
    twins: Tensor | None = None  # [K + B, slots] block that lists the id first, K + B where this one does

    @property
    def clusters(self) -> int:
        """Clusters that compete for probes, K."""
        return self.directions.shape[0]

    @property
    def slots(self) -> int:
        """Rows of a block."""
        return self.blocks.shape[1]

    @property
    def forced(self) -> int:
        """Blocks of always-scored rows, B."""
        return len(self.blocks) - self.clusters


def build_table(weight: Tensor, clusters: Clusters, plan: FlashPlan) -> Table:
    """Permute weight [V, D] once, with the rows of the plan's `always` copied into blocks of their own behind the clusters."""
    chosen = torch.tensor(plan.always, dtype=torch.int64, device=weight.device)
    listed = _listed(clusters)
    own = torch.isin(listed, chosen)
    members = torch.cat((listed, _in_blocks(chosen, listed.shape[1])))
    off = members < 0
    off[: clusters.count] |= own
    ids = members.where(members >= 0, members[:, :1])
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    bias = torch.zeros(ids.shape, dtype=wide, device=weight.device).masked_fill(off, -torch.inf)
    shelf = Shelf()
    blocks = shelf.zeros((ids.numel(), weight.shape[1]), weight.dtype, weight.device)
    return Table(
        blocks=torch.index_select(weight, 0, ids.flatten(), out=blocks).view(*ids.shape, -1),
        ids=shelf.moved(ids),
        bias=shelf.moved(bias),
        directions=stage_one(clusters.centroids, weight.dtype, plan.stage1),
        lengths=clusters.centroids.to(wide).norm(dim=1),
        twins=_twins(clusters, ids) if clusters.second is not None else None,
    )


def stage_one(centroids: Tensor, dtype: torch.dtype, kind: str) -> Tensor | Packed:
    """Unit directions of centroids [K, D] in the format `kind`; "weight" is the weight's own `dtype`."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    unit = F.normalize(centroids.to(wide), dim=1)
    if kind in ("int8", "int4"):
        return pack(unit, int(kind[3:]))
    return Shelf().moved(unit.to(torch.bfloat16 if kind == "bf16" else dtype))


def _listed(clusters: Clusters) -> Tensor:
    """Ids of every cluster [K, slots]: those at home there first, then those at home there second, -1 in empty slots."""
    if clusters.second is None:
        return clusters.members
    return torch.cat((clusters.members, members_of(clusters.second, clusters.count, clusters.size)), 1)


def _twins(clusters: Clusters, ids: Tensor) -> Tensor:
    twins = torch.full_like(ids, len(ids))
    second = ids[: clusters.count, clusters.size :]
    twins[: clusters.count, clusters.size :] = clusters.assignments[second]
    return twins


def _in_blocks(ids: Tensor, size: int) -> Tensor:
    """Ids [n] as blocks [ceil(n / size), size], padded with -1."""
    padded = F.pad(ids, (0, -len(ids) % size), value=-1)
    return padded.view(-1, size)


def assignments_of(members: Tensor, vocab_size: int) -> Tensor:
    """Cluster [V] of every id in members [K, size]; ValueError unless each id stands there exactly once."""
    ids = members.flatten()
    ids = ids[ids >= 0]
    if len(ids) != vocab_size or not torch.equal(ids.sort().values, torch.arange(vocab_size, device=ids.device)):
        raise ValueError(f"a clustering lists each of the {vocab_size} ids once, but this one does not; build the head again")
    cluster_of = torch.arange(len(members), device=ids.device)[:, None].expand_as(members)
    return torch.empty_like(ids).scatter_(0, ids, cluster_of.flatten()[members.flatten() >= 0])

"""A vocabulary weight in the order a clustered head reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.heads.cluster import Clusters


class Table(NamedTuple):
    """K clusters of rows, then the blocks of always-scored rows; a block is contiguous and probed as a whole.

    A slot that must not count (padding, or an always-scored id in its own cluster) has bias -inf and a valid id.
    """

    blocks: Tensor  # [K + B, size, D], the weight's dtype
    ids: Tensor  # [K + B, size] int64
    bias: Tensor  # [K + B, size], 0 or -inf
    directions: Tensor  # [K, D] unit centroids, the weight's dtype
    lengths: Tensor  # [K] lengths of the centroids
    masked: bool  # whether any slot of a cluster has bias -inf

    @property
    def clusters(self) -> int:
        """Clusters that compete for probes, K."""
        return len(self.directions)

    @property
    def forced(self) -> int:
        """Blocks of always-scored rows, B."""
        return len(self.blocks) - self.clusters


def build_table(weight: Tensor, clusters: Clusters, always: tuple[int, ...]) -> Table:
    """Permute weight [V, D] once, with the rows of the ids in `always` copied into blocks of their own behind the clusters."""
    chosen = torch.tensor(always, dtype=torch.int64, device=weight.device)
    own = torch.isin(clusters.members, chosen)
    members = torch.cat((clusters.members, _in_blocks(chosen, clusters.size)))
    off = members < 0
    off[: clusters.count] |= own
    ids = members.where(members >= 0, members[:, :1])
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    bias = torch.zeros(ids.shape, dtype=wide, device=weight.device).masked_fill(off, -torch.inf)
    centroids = clusters.centroids.to(wide)
    return Table(
        blocks=weight[ids.flatten()].view(*ids.shape, -1),
        ids=ids,
        bias=bias,
        directions=F.normalize(centroids, dim=1).to(weight.dtype),
        lengths=centroids.norm(dim=1),
        masked=bool(off.any()),
    )


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

"""What a clustered head scores, and its vocabulary weight in the order it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.heads.cluster import Clusters, members_of
from flashspec.kernels import Packed, pack
from flashspec.kernels.pages import Shelf
from flashspec.typed import typed, whole_numbers

SELECTIONS = ("top", "sample")
FORMATS = ("weight", "bf16", "int8", "int4")


@typed
@dataclass(frozen=True)
class FlashPlan:
    """What a FlashHead scores.

    `probes` clusters of `cluster_size` rows are scored for each hidden row (None: one cluster in sixteen, as the authors'
    released code does), and the ids in `always` in any case. `selection` "top" takes the best clusters; "sample" draws them
    without replacement from softmax(centroids . row / temperature), so that every id can be drafted. `seed`, `metric` and
    `homes` are the clustering's (see Recipe). `stage1` is the format of the centroids' directions: "weight" for the
    weight's own, "bf16", "int8" or "int4"; the probed rows are exact whatever it is. With `best` a head names its best id
    alone, found by one fused kernel on CUDA; as a draft that is a sure proposal, which verification may reject.
    """

    cluster_size: int = 16
    probes: int | None = None
    always: tuple[int, ...] = ()
    seed: int = 0
    selection: str = "top"
    temperature: float = 1.0
    stage1: str = "weight"
    metric: str = "spherical"
    homes: int = 1
    best: bool = False

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if self.stage1 not in FORMATS:
            raise ValueError(f"stage1 must be one of {', '.join(FORMATS)}, got {self.stage1!r}")
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
        if self.homes > clusters.homes:
            raise ValueError("these clusters give every id one home and the plan asks for 2; cluster with Recipe(homes=2)")
        return replace(self, probes=probes, cluster_size=clusters.size, homes=clusters.homes)


def known(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of a FlashPlan, ids as whole numbers; ValueError names an option there is not."""
    unknown = [name for name in changes if name not in FlashPlan.__dataclass_fields__]
    if unknown:
        raise ValueError(f"FlashHead has no option {unknown[0]!r}; options: {', '.join(FlashPlan.__dataclass_fields__)}")
    if "always" in changes:
        changes = {**changes, "always": whole_numbers("always", changes["always"])}
    return changes


class Table(NamedTuple):
    """K clusters of rows, then the blocks of always-scored rows; a block is contiguous and probed as a whole.

    A slot that must not count (padding, or an always-scored id in its own cluster) has bias -inf and a valid id. Where ids
    have a second home, it is listed behind the first homes of that cluster, and its `twins` names the block of its first home.
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
    """Cluster [V] of every id in members [K, size]; ValueError unless each id is listed there exactly once."""
    ids = members.flatten()
    ids = ids[ids >= 0]
    if len(ids) != vocab_size or not torch.equal(ids.sort().values, torch.arange(vocab_size, device=ids.device)):
        raise ValueError(f"a clustering lists each of the {vocab_size} ids once, but this one does not; build the head again")
    cluster_of = torch.arange(len(members), device=ids.device)[:, None].expand_as(members)
    return torch.empty_like(ids).scatter_(0, ids, cluster_of.flatten()[members.flatten() >= 0])

"""What a clustered head scores, and its vocabulary weight in the order it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.heads.base import wide
from flashspec.heads.cluster import Clusters
from flashspec.kernels import Packed, pack
from flashspec.kernels.integers import BITS, PANEL
from flashspec.kernels.pages import Shelf
from flashspec.typed import typed, whole_numbers

FORMATS = ("weight", "int8", "int4")


@typed
@dataclass(frozen=True)
class FlashPlan:
    """What a FlashHead scores.

    The `probes` best clusters are scored for each hidden row (None: one in sixteen, as in the authors' code), and the
    ids in `always` in any case. `stage1` is the format of the centroids ("weight": the weight's own).
    """

    probes: int | None = None
    always: tuple[int, ...] = ()
    stage1: str = "weight"

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.stage1 not in FORMATS:
            raise ValueError(f"stage1 must be one of {', '.join(FORMATS)}, got {self.stage1!r}")
        if len(set(self.always)) < len(self.always):
            raise ValueError("always lists an id twice; list each once")

    def changed(self, changes: dict[str, Any]) -> FlashPlan:
        """This plan with other values; ValueError names a field there is not."""
        for name in changes:
            if name not in self.__dataclass_fields__:
                raise ValueError(f"FlashHead has no option {name!r}; options: {', '.join(self.__dataclass_fields__)}")
        if "always" in changes:
            changes = {**changes, "always": whole_numbers("always", changes["always"])}
        return replace(self, **changes)

    def resolve(self, clusters: Clusters) -> FlashPlan:
        """This plan for these clusters, probes filled in; ValueError where it asks for more than there is."""
        probes = self.probes if self.probes is not None else -(-clusters.count // 16)
        if probes > clusters.count:
            raise ValueError(f"probes must be at most the {clusters.count} clusters of this head, got {probes}")
        wrong = [v for v in self.always if not 0 <= v < clusters.vocab_size]
        if wrong:
            raise ValueError(f"always holds id {wrong[0]}, but this head's ids run from 0 to {clusters.vocab_size - 1}")
        return replace(self, probes=probes)


class Table(NamedTuple):
    """K clusters of rows, then the blocks of always-scored rows; a block is contiguous and probed as a whole.

    A slot that must not count (padding, or an always-scored id in its own cluster) has bias -inf and a valid id.
    """

    blocks: Tensor | Packed  # [K + B, slots, D] in the weight's dtype, or panels in its codes
    ids: Tensor  # [K + B, slots] int64
    bias: Tensor  # [K + B, slots], 0 or -inf
    directions: Tensor | Packed  # [K, D] unit or plain centroids, in the format of stage 1

    @property
    def clusters(self) -> int:
        """Clusters that compete for probes, K."""
        return self.directions.shape[0]

    @property
    def slots(self) -> int:
        """Rows of a block."""
        return self.ids.shape[1]

    @property
    def forced(self) -> int:
        """Blocks of always-scored rows, B."""
        return len(self.ids) - self.clusters


def build_table(weight: Tensor | Packed, clusters: Clusters, plan: FlashPlan) -> Table:
    """Permute weight [V, D] once, with the rows of the plan's `always` in blocks of their own behind.

    A packed weight keeps its codes where a cluster is a panel of sixteen rows, and is widened where it is not.
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
    blocks, directions = _taken(weight, ids, shelf), stage_one(clusters, weight, plan.stage1)
    return Table(blocks, shelf.moved(ids), shelf.moved(bias), directions)


def _taken(weight: Tensor | Packed, ids: Tensor, shelf: Shelf) -> Tensor | Packed:
    """The rows of ids [blocks, slots], a block behind the other."""
    if isinstance(weight, Packed):
        return weight.taken(ids.flatten())
    blocks = shelf.zeros((ids.numel(), weight.shape[1]), weight.dtype, weight.device)
    return torch.index_select(weight, 0, ids.flatten(), out=blocks).view(*ids.shape, -1)


def stage_one(clusters: Clusters, weight: Tensor | Packed, kind: str) -> Tensor | Packed:
    """What clusters [K, D] are found by, directions or means, in the format `kind` ("weight": the weight's)."""
    means = clusters.centroids.to(wide(weight))
    unit = F.normalize(means, dim=1) if clusters.spherical else means
    if isinstance(weight, Packed) and kind == "weight":
        return pack(unit, BITS[weight.kind])
    return Shelf().moved(unit.to(weight.dtype)) if kind == "weight" else pack(unit, int(kind[3:]))

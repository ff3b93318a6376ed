"""What a FlashHead scores, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flashspec.heads.cluster import Clusters
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

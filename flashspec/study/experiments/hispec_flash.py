"""FlashHead on the draft exit: the head's share of a drafted token by depth, and what the hierarchy gains from a cheaper one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.decoding.hierarchy import hispec, self_speculation
from flashspec.decoding.method import Method
from flashspec.measure.contest import Entry
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Row, entry_of
from flashspec.study.pairs import at_least, folders
from flashspec.study.rows import Timed, points


@dataclass(frozen=True)
class Params(Timed):
    """Which exits draft, with a dense head and with a FlashHead, alone and below an intermediate verifier."""

    draft: str = "main"  # draft model that is loaded beside it
    draft_exits: tuple[int, ...] = (1, 2, 3)  # exits that draft
    verify_exit: int = 4  # HiSpec's intermediate verifier
    n_d: int = 3  # tokens drafted before the verifier above acts
    n_i: int = 6  # tokens that wait before the whole model acts
    probes: tuple[int, ...] = (64, 256)  # clusters that FlashHead scores
    repeats: int = 3  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, draft_exits=1, n_d=1, n_i=1, probes=1, new_tokens=4)
        if max(self.draft_exits) >= self.verify_exit:
            raise ValueError(f"draft_exits must lie below verify_exit = {self.verify_exit}, got {self.draft_exits}")


def measure(params: Params) -> Iterator[Row]:
    """Time both hierarchies with a dense head and with FlashHead on the draft exit, beside plain decoding."""
    yield from hierarchies.timed(params, entries_of)


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding, and every exit under both hierarchies with every head."""
    found = [hierarchies.baseline(sampling)]
    for draft_exit in params.draft_exits:
        kinds = {
            "self_speculation": self_speculation(draft_exit, params.n_d),
            "hispec": hispec(draft_exit, params.verify_exit, params.n_d, params.n_i),
        }
        found += [entry_of(name, each, sampling) for name, method in kinds.items() for each in headed(params, method)]
    return found


def headed(params: Params, method: Method) -> list[Method]:
    """A method with its dense head, and with a FlashHead at every number of probes."""
    return [method, *(replace(method, head="flash", probes=probes) for probes in params.probes)]


SMOKE = Params(draft_exits=(2,), probes=(64,), temperatures=(0.0,), new_tokens=8, repeats=1)
EXPERIMENT = Experiment("hispec_flash", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

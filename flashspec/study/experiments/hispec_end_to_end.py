"""HiSpec against all its baselines by kind of prompt, each tuned: plain, two models, prompt lookup, self-speculation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flashspec.decoding.method import METHODS, Method
from flashspec.measure.contest import Entry
from flashspec.scores import Sampling
from flashspec.study import hierarchies
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Row, Schedules, entry_of, tuned_hispec, tuned_self
from flashspec.study.pairs import among, at_least, folders
from flashspec.study.rows import points

METHODS_HERE = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "hispec_typical")


@dataclass(frozen=True)
class Params(Schedules):
    """Which methods to run, each over a few schedules: the best of each is shown. Every method runs beside plain decoding."""

    methods: tuple[str, ...] = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive")  # contestants
    ks: tuple[int, ...] = (2, 4, 6)  # drafted tokens a check, of methods with one verifier
    self_exits: tuple[int, ...] = (1, 2)  # exits of self-speculation
    draft_exits: tuple[int, ...] = (1, 2)  # HiSpec's draft exits
    verify_exits: tuple[int, ...] = (4,)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (2, 3)  # tokens drafted before the intermediate verifier acts
    n_is: tuple[int, ...] = (4, 6)  # tokens that wait before the whole model acts
    probes: int = 64  # clusters that FlashHead scores
    doubt: float = 0.3  # confidence below which an adaptive stage asks the one above

    def __post_init__(self) -> None:
        super().__post_init__()
        among("methods", self.methods, METHODS_HERE)
        at_least(self, probes=1)
        Method(exits=(1,), draft_doubt=self.doubt)


def measure(params: Params) -> Iterator[Row]:
    """Time every method and schedule in turns, with costs of every stage, float32 twins and certificates."""
    yield from hierarchies.timed(params, entries_of)


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding and every schedule of every method."""
    found = [entry for name in params.methods for entry in schedules(params, name, sampling)]
    return [hierarchies.baseline(sampling), *found]


def schedules(params: Params, name: str, sampling: Sampling) -> list[Entry]:
    """The schedules of one method."""
    if name in ("dense", "lookup"):
        return [entry_of(name, replace(METHODS[name], k=k), sampling) for k in params.ks]
    if name == "self_speculation":
        return tuned_self(params.self_exits, params.ks, sampling)
    changes: dict[str, dict[str, Any]] = {
        "hispec_flash": {"head": "flash", "probes": params.probes},
        "hispec_adaptive": {"draft_doubt": params.doubt, "verify_doubt": params.doubt},
        "hispec_typical": {"middle": "typical"},
    }
    plain = tuned_hispec(params.pairs, params.n_ds, params.n_is, sampling)
    return [entry_of(name, replace(entry.method, **changes.get(name, {})), sampling) for entry in plain]


SMOKE = Params(
    ks=(2,), self_exits=(2,), draft_exits=(2,), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8, repeats=1
)  # fmt: skip
EXPERIMENT = Experiment("hispec_end_to_end", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

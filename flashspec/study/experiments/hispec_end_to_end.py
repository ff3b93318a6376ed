"""HiSpec against all its baselines by kind of prompt, each tuned: plain, two models, prompt lookup, self-speculation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flashspec.decoding.hierarchy import hispec, self_speculation
from flashspec.decoding.method import Method
from flashspec.measure.contest import Entry
from flashspec.scores import Sampling
from flashspec.study import heights, hierarchies
from flashspec.study.experiment import Experiment, stored
from flashspec.study.experiments import hispec_grid
from flashspec.study.hierarchies import Row, Schedules, entry_of, tuned_hispec, tuned_self
from flashspec.study.pairs import among, at_least, folders
from flashspec.study.parameters import Refused
from flashspec.study.rows import points

if TYPE_CHECKING:
    from pandas import DataFrame

METHODS_HERE = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "hispec_typical")
FAMILY = dict.fromkeys(("hispec_flash", "hispec_adaptive", "hispec_typical"), "hispec")


@dataclass(frozen=True)
class Params(Schedules):
    """Which methods to run, each over a few schedules: the best of each is shown. Every method runs beside plain decoding.

    With `tuned` the schedules are the fastest that `hispec_grid` has timed at the same temperature; exits and bursts below are
    those of an untuned run.
    """

    methods: tuple[str, ...] = ("dense", "lookup", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive")  # contestants
    ks: tuple[int, ...] = (2, 4, 6)  # drafted tokens a check, of methods with one verifier
    self_exits: tuple[int, ...] = (1, 2)  # exits of self-speculation
    draft_exits: tuple[int, ...] = (1, 2)  # HiSpec's draft exits
    verify_exits: tuple[int, ...] = (4,)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (2, 3)  # tokens drafted before the intermediate verifier acts
    n_is: tuple[int, ...] = (4, 6)  # tokens that wait before the whole model acts
    tuned: bool = True  # take each method's schedules from the stored table of hispec_grid
    best: int = 2  # schedules of each method that are taken from it
    probes: int = 64  # clusters that FlashHead scores
    doubt: float = 0.3  # confidence below which an adaptive stage asks the one above
    repeats: int = 3  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        among("methods", self.methods, METHODS_HERE)
        at_least(self, probes=1, best=1)
        Method(exits=(1,), draft_doubt=self.doubt)


def measure(params: Params) -> Iterator[Row]:
    """Time every method and schedule in turns, with costs of every stage, float32 twins and certificates."""
    yield from hierarchies.timed(params, entries_of)


def entries_of(params: Params, sampling: Sampling) -> list[Entry]:
    """Plain decoding and every schedule of every method."""
    grid = grid_of(params) if params.tuned else None
    found = [e for name in params.methods for e in (schedules(params, name, sampling) if grid is None else
                                                    best_of(params, grid, name, sampling))]  # fmt: skip
    return [hierarchies.baseline(sampling), *found]


def grid_of(params: Params) -> DataFrame:
    """The stored table of `hispec_grid` on the same models; Refused where there is none."""
    same = {name: getattr(params, name) for name in ("target", "draft", "prompts", "weights", "dtype")}
    table = stored("hispec_grid", params=hispec_grid.Params(**same))
    if table is None:
        raise Refused("hispec_grid has no stored table for these models; run `flashspec run hispec_grid`, or set tuned=false")
    return table.frame


def best_of(params: Params, grid: DataFrame, name: str, sampling: Sampling) -> list[Entry]:
    """The fastest schedules of one method's family in the grid, at this temperature."""
    rows = heights.fastest(grid, FAMILY.get(name, name), params.best, temperature=sampling.temperature)
    if name in ("dense", "lookup"):
        return hierarchies.tuned_block(name, [int(k) for k in rows["n_d"]], sampling)
    found = [(tuple(int(e) for e in (r.draft_exit, r.verify_exit) if e), int(r.n_d), int(r.n_i)) for r in rows.itertuples()]
    methods = [hispec(e[0], e[1], n_d, n_i) if len(e) > 1 else self_speculation(e[0], n_d) for e, n_d, n_i in found]
    return [entry_of(name, replace(method, **changes(params, name)), sampling) for method in methods]


def schedules(params: Params, name: str, sampling: Sampling) -> list[Entry]:
    """The schedules of one method in an untuned run."""
    if name in ("dense", "lookup"):
        return hierarchies.tuned_block(name, params.ks, sampling)
    if name == "self_speculation":
        return tuned_self(params.self_exits, params.ks, sampling)
    plain = tuned_hispec(params.pairs, params.n_ds, params.n_is, sampling)
    return [entry_of(name, replace(entry.method, **changes(params, name)), sampling) for entry in plain]


def changes(params: Params, name: str) -> dict[str, Any]:
    """What sets a variant of HiSpec apart from it."""
    variants: dict[str, dict[str, Any]] = {
        "hispec_flash": {"head": "flash", "probes": params.probes},
        "hispec_adaptive": {"draft_doubt": params.doubt, "verify_doubt": params.doubt},
        "hispec_typical": {"middle": "typical"},
    }
    return variants.get(name, {})


SMOKE = Params(
    ks=(2,), self_exits=(2,), draft_exits=(2,), n_ds=(2,), n_is=(4,), temperatures=(0.0,), new_tokens=8, repeats=1,
    tuned=False,
)  # fmt: skip
EXPERIMENT = Experiment("hispec_end_to_end", Params, Row, measure, split=points, models=folders, presets={"smoke": SMOKE})

"""Published throughputs beside those that the papers' own parts give under the throughput model: arithmetic, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from flashspec.study import papers
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among
from flashspec.theory import Costs, throughput

WORKS = ("decoding", "thesis")


@dataclass(frozen=True)
class Params:
    """Which works to compute."""

    works: tuple[str, ...] = WORKS  # decoding (Decoding Speculative Decoding), thesis

    def __post_init__(self) -> None:
        among("works", self.works, WORKS)


class Row(NamedTuple):
    """A printed number and the computed one beside it."""

    work: str
    what: str
    published: float
    computed: float
    unit: str
    source: str


def measure(params: Params) -> Iterator[Row]:
    """Compute what the papers' parts foretell and lay it beside what they printed."""
    if "decoding" in params.works:
        yield from decoding_rows()
    if "thesis" in params.works:
        yield from thesis_rows()


def decoding_rows() -> Iterator[Row]:
    """Both drafts with all parts printed, their gain, and the gains at T = 1 from the rates beside them."""
    k, check = papers.implied_round()
    computed = []
    for draft in (papers.YAN_DEEP, papers.YAN_WIDE):
        computed.append(1e3 * throughput(draft.tar, Costs(draft.step_ms, check), k))
        yield Row("decoding", f"throughput with {draft.shape}", draft.rate, computed[-1], "tokens/s", draft.source)
    printed = papers.YAN_WIDE.rate / papers.YAN_DEEP.rate
    yield Row("decoding", "wide over deep draft", printed, computed[1] / computed[0], "x", papers.YAN_TABLE)
    for found in papers.YAN_SAMPLED:
        said = 1 + found.gain / 100
        yield Row("decoding", f"gain at T = 1, {found.data}", said, found.wide / found.deep, "x", papers.YAN_TABLE)


def thesis_rows() -> Iterator[Row]:
    """The four rates, by the closest model of fixed costs with one TAR for both heads."""
    closest = papers.thesis_fixed_costs().closest
    for name in papers.RATES:
        claim = papers.THESIS[name]
        yield Row("thesis", claim.what, claim.value, 1e3 / closest[name], claim.unit, claim.source)


SMOKE = Params(works=("decoding",))
EXPERIMENT = Experiment("papers_table", Params, Row, measure, measured=False, presets={"smoke": SMOKE})

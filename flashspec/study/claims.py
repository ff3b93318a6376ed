"""What the three reproduced works claim, beside what was measured here like for like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from flashspec.decoding.models import SHIPPED
from flashspec.study import answers, chain, drafting, exits, papers
from flashspec.study.frames import DataFrame, framed, having
from flashspec.study.quote import NOT_HERE
from flashspec.study.registry import stored

CLAIMS = SHIPPED / "claims.json"
WORKS = {"thesis2026": "thesis", "yan2024decoding": "Decoding Speculative Decoding", "hispec2025": "HiSpec"}
COLUMNS = ("work", "claim", "printed", "source", "sampling", "measured", "verdict", "why")


class Claim(msgspec.Struct, frozen=True):
    """One of `papers.claims()`: what it says, why ours may differ, and what answers it: a reading of a stored table.

    The table is a preset's, or that of the defaults. A `ratio` is of the sides `mine` and `over`; in other readings `mine`
    selects the lines.
    """

    work: str
    of: str
    claim: str
    why: str
    reading: str = ""
    preset: str = ""
    mine: dict[str, Any] = {}
    over: dict[str, Any] = {}


def claims() -> tuple[Claim, ...]:
    """All of them, in the order of the works."""
    return msgspec.json.decode(CLAIMS.read_bytes(), type=tuple[Claim, ...])


def measured(claim: Claim, root: Path | None = None) -> DataFrame:
    """Lines with ratio, low, high and verdict, one per sampling; none where a table is not stored."""
    table = stored(EXPERIMENTS[claim.reading], root, claim.preset or None) if claim.reading else None
    family = stored("family", root) if claim.reading == "merit" else None
    nothing = framed([], ["ratio", "low", "high", "verdict", "temperature"])
    if table is None or (claim.reading == "merit" and family is None):
        return nothing
    if claim.reading == "ratio":
        return answers.ratio(table.frame, answers.Question(claim.claim, claim.preset, claim.mine, claim.over, 0))
    if family is not None:
        found = drafting.correlations(drafting.merits(table.frame, family.frame)).rename(columns={"value": "ratio"})
    else:
        found = READINGS[claim.reading](table.frame).assign(temperature=float("nan"))
    return found[having(found, claim.mine)]


def agreeing(frame: DataFrame) -> DataFrame:
    """How often an exit's best token is that of a deeper layer; one count of all positions, without an interval."""
    found = exits.shares(frame)
    share = found["agreement"]
    return found.assign(ratio=share, low=share, high=share, verdict=share.map("{:.2f}".format))


EXPERIMENTS = {"ratio": "race", "merit": "race", "piece": "parts", "depth": "parts", "exit": "exits"}
READINGS = {"piece": chain.faster, "depth": drafting.depth_gains, "exit": agreeing}


def scoreboard(root: Path | None = None) -> DataFrame:
    """One line per claim and sampling: the printed number and where, the measured one, whether they agree, and why if not."""
    lines, works = [], papers.claims()
    for claim in claims():
        printed = works[claim.work][claim.of]
        source = f"{papers.LABELS[printed.label]} [{printed.label}]"
        facts = {"work": claim.work, "claim": claim.claim, "printed": printed.value, "source": source, "why": claim.why}
        found = measured(claim, root).to_dict("records")
        untested = {"sampling": "", "measured": NOT_HERE, "verdict": "not testable here"}
        lines += [{**facts, **judged(printed.value, line)} for line in found] or [{**facts, **untested}]
    return framed(lines, COLUMNS).replace({"work": WORKS})


def judged(printed: float, line: dict[str, Any]) -> dict[str, str]:
    """A measured line beside a printed ratio: they agree where the interval contains it."""
    agrees = line["low"] <= printed <= line["high"]
    verdict = "agrees" if agrees else "differs: more here" if line["ratio"] > printed else "differs: less here"
    heat = line["temperature"]
    sampling = "" if heat != heat else f"T = {heat:g}" if heat else "greedy"
    return {"sampling": sampling, "measured": line["verdict"], "verdict": verdict}

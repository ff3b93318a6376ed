"""What the three reproduced works claim, beside what was measured here like for like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from flashspec.decoding.models import SHIPPED
from flashspec.study import answers, chain
from flashspec.study.frames import DataFrame, framed, having
from flashspec.study.quote import NOT_HERE
from flashspec.study.registry import stored

CLAIMS = SHIPPED / "claims.json"
WORKS = {"thesis2026": "thesis", "yan2024decoding": "Decoding Speculative Decoding", "hispec2025": "HiSpec"}
COLUMNS = ("work", "claim", "printed", "source", "sampling", "measured", "verdict", "why")


class Claim(msgspec.Struct, frozen=True):
    """A ratio printed in a work and where, the preset of race or parts that measures it, its two sides, and why they differ."""

    work: str
    claim: str
    printed: float
    source: str
    why: str
    race: str = ""
    parts: str = ""
    mine: dict[str, Any] = {}
    over: dict[str, Any] = {}


def claims() -> tuple[Claim, ...]:
    """All of them, in the order of the works."""
    return msgspec.json.decode(CLAIMS.read_bytes(), type=tuple[Claim, ...])


def measured(claim: Claim, root: Path | None = None) -> DataFrame:
    """Lines with ratio, low, high and verdict, one per sampling; none where no table is stored."""
    if claim.parts and (pieces := stored("parts", root, claim.parts)):
        found = chain.faster(pieces.frame)
        return found[having(found, claim.mine)].assign(temperature=float("nan"))
    if claim.race and (race := stored("race", root, claim.race)):
        return answers.ratio(race.frame, answers.Question(claim.claim, claim.race, claim.mine, claim.over, 0))
    return framed([], ["ratio", "low", "high", "verdict", "temperature"])


def scoreboard(root: Path | None = None) -> DataFrame:
    """One line per claim and sampling: the printed ratio and where, the measured one, whether they agree, and why if not."""
    lines = []
    for claim in claims():
        facts = {name: getattr(claim, name) for name in ("work", "claim", "printed", "source", "why")}
        found = measured(claim, root).to_dict("records")
        untested = {"sampling": "", "measured": NOT_HERE, "verdict": "not testable here"}
        lines += [{**facts, **judged(claim.printed, line)} for line in found] or [{**facts, **untested}]
    return framed(lines, COLUMNS).replace({"work": WORKS})


def judged(printed: float, line: dict[str, Any]) -> dict[str, str]:
    """A measured line beside a printed ratio: they agree where the interval contains it."""
    agrees = line["low"] <= printed <= line["high"]
    verdict = "agrees" if agrees else "differs: more here" if line["ratio"] > printed else "differs: less here"
    heat = line["temperature"]
    sampling = "" if heat != heat else f"T = {heat:g}" if heat else "greedy"
    return {"sampling": sampling, "measured": line["verdict"], "verdict": verdict}

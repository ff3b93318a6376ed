"""What the three reproduced works claim, beside what was measured here like for like."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from operator import truediv
from pathlib import Path
from typing import Any

from flashspec.decoding.models import SHIPPED
from flashspec.study import answers, chain, drafting, exits, papers
from flashspec.study.frames import DataFrame, framed, having
from flashspec.study.quote import NOT_HERE
from flashspec.study.registry import stored

# Each names its work, the printed number or two that are divided, the label of their source, what it says, and why ours may
# differ. What answers it is a reading of stored tables: the first is a preset's, or that of the defaults. A `ratio` is of the
# sides `mine` and `over`; in other readings `mine` selects the lines.
CLAIMS: list[dict[str, Any]] = json.loads((SHIPPED / "claims.json").read_bytes())
WORKS = {"thesis2026": "thesis", "yan2024decoding": "Decoding Speculative Decoding", "hispec2025": "HiSpec"}
COLUMNS = ("work", "claim", "printed", "source", "sampling", "measured", "verdict", "why")
TABLES = {"ratio": ["race"], "quality": ["race", "family"], "piece": ["parts"], "depth": ["parts"], "exit": ["exits"]}


def measured(claim: dict[str, Any], root: Path | None = None) -> DataFrame:
    """Lines with ratio, low, high and verdict, one per sampling; none where a table is not stored."""
    reading, presets = claim.get("reading", ""), [claim.get("preset"), None]
    tables = [stored(name, root, preset) for name, preset in zip(TABLES.get(reading, ()), presets, strict=False)]
    frames = [table.frame for table in tables if table]
    if not frames or len(frames) < len(tables):
        return framed([], ["ratio", "low", "high", "verdict", "temperature"])
    if reading == "ratio":
        return answers.ratio(frames[0], claim["mine"], claim["over"])
    found = READINGS[reading](*frames)
    return found[having(found, claim["mine"])]


def agreeing(frame: DataFrame) -> DataFrame:
    """How often an exit's best token is that of a deeper layer; one count of all positions, without an interval."""
    found = exits.shares(frame)
    share = found["agreement"]
    return found.assign(ratio=share, low=share, high=share, verdict=share.map("{:.2f}".format))


READINGS: dict[str, Callable[..., DataFrame]] = {
    "quality": lambda race, family: drafting.correlations(drafting.qualities(race, family)).rename(columns={"value": "ratio"}),
    "piece": chain.faster,
    "depth": drafting.depth_gains,
    "exit": agreeing,
}


def scoreboard(root: Path | None = None) -> DataFrame:
    """One line per claim and sampling: the printed number and where, the measured one, whether they agree, and why if not."""
    lines = []
    for claim in CLAIMS:
        printed = reduce(truediv, [papers.PRINTED[claim["work"]][name] for name in claim["of"].split(" / ")])
        source = f"{papers.LABELS[claim['label']]} [{claim['label']}]"
        facts = {"work": WORKS[claim["work"]], "claim": claim["claim"], "printed": printed, "source": source, "why": claim["why"]}
        found = [judged(printed, line) for line in measured(claim, root).to_dict("records")]
        untested = {"sampling": "", "measured": NOT_HERE, "verdict": "not testable here"}
        lines += [{**facts, **line} for line in found or [untested]]
    return framed(lines, COLUMNS)


def judged(printed: float, line: dict[str, Any]) -> dict[str, str]:
    """A measured line beside a printed ratio: they agree where the interval contains it."""
    agrees = line["low"] <= printed <= line["high"]
    verdict = "agrees" if agrees else "differs: more here" if line["ratio"] > printed else "differs: less here"
    heat = line.get("temperature")
    sampling = "" if heat is None else f"T = {heat:g}" if heat else "greedy"
    return {"sampling": sampling, "measured": line["verdict"], "verdict": verdict}

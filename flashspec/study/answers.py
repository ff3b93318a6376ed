"""The study's questions, each answered by one ratio in a stored race, and what the three works claim, beside what was measured.

`flashspec pages README.md` writes the answers and their picture into that page.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from functools import reduce
from math import isnan
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np

from flashspec.decoding.models import SHIPPED
from flashspec.models.synthetic import shape
from flashspec.models.writing import write_text
from flashspec.study import chain, compare, drafting, exits, figures, papers
from flashspec.study.frames import DataFrame, framed, having, pivoted
from flashspec.study.quote import NOT_HERE
from flashspec.study.registry import stored
from flashspec.study.tables import Results

# Each names its work, the printed number or two that are divided, the label of their source, what it says, and why ours may
# differ. What answers it is a reading of stored tables: the first is a preset's, or that of the defaults. A `ratio` is of the
# sides `mine` and `over`; in other readings `mine` selects the lines.
CLAIMS: list[dict[str, Any]] = json.loads((SHIPPED / "claims.json").read_bytes())
WORKS = {"thesis2026": "thesis", "yan2024decoding": "Decoding Speculative Decoding", "hispec2025": "HiSpec"}
CLAIMED = ("work", "claim", "printed", "source", "sampling", "measured", "verdict", "why")
TABLES = {"ratio": ["race"], "quality": ["race", "family"], "piece": ["parts"], "depth": ["parts"], "exit": ["exits"]}
START, STOP = "<!-- results: written by `make book`, do not edit -->", "<!-- end of results -->"
PICTURE = Path("book") / "_static" / "answers.svg"
BY = (*compare.CONTEXT, "draft", "method", "head", "format", "finalize")
COLUMNS = ["name", "question", "sampling", "temperature", "rule", "draft", "k", *compare.NUMBERS, "pays", "chapter"]
SHOWN = {"question": "question", "chapter": "chapter", "prompts": "prompts", "verdict": "measured"}
PAIRS = {
    "qwen": ("Qwen2.5-1.5B", "Qwen2.5-0.5B"), "smollm2": ("SmolLM2-135M",), "reference": ("reference-target", "reference-draft"),
}  # fmt: skip

# a question asks how much faster the runs that `mine` names are than those that `over` names, in the race of one preset
ASKED = tomllib.loads((SHIPPED / "questions.toml").read_text(encoding="utf-8"))
Questions = Mapping[str, Mapping[str, Any]]
REAL, DECISIONS, LOST = (
    {name: ASKED["questions"][name] for name in ASKED["pages"][page]} for page in ("real", "decisions", "lost")
)


def found(questions: Questions, root: Path | None = None) -> dict[str, Results]:
    """The stored races that questions ask, by preset; nothing is measured."""
    tables = {name: stored("race", root, name) for name in dict.fromkeys(each["race"] for each in questions.values())}
    return {name: table for name, table in tables.items() if table}


def answers(questions: Questions, tables: Mapping[str, Results]) -> DataFrame:
    """One line per question, temperature and rule: the ratio with its interval; NOT_HERE where the table is missing.

    Its column `pays` says whether the interval is above 1, below 1, or holds 1.
    """
    lines = []
    for name, each in questions.items():
        found = [{"verdict": NOT_HERE}]
        if race := tables.get(each["race"]):
            found = compare.sampled(ratio(race.frame, each["mine"], each["over"])).to_dict("records") or found
        lines += [{**line, "name": name, "question": each["what"], "chapter": each["chapter"]} for line in found]
    table = framed(lines).reindex(columns=COLUMNS)
    low, high = table["low"], table["high"]
    words = {"pays": low > 1, "loses": high < 1, "no difference shown": low <= high}
    return table.assign(pays=np.select([*words.values()], [*words], NOT_HERE))


def ratio(frame: DataFrame, mine: Mapping[str, Any], over: Mapping[str, Any]) -> DataFrame:
    """The lines of a frame in which the sides `mine` and `over` ran, paired by prompt and turn."""
    above, below = (having(frame, side) for side in (mine, over))
    apart = {name: value for name, value in over.items() if mine.get(name) != value}
    return compare.gain(frame[above & (frame["method"] != "baseline") | below], apart, BY, [])


def pairs() -> DataFrame:
    """The study's models: pair, role, layers, width, thousands of tokens in the vocabulary, millions of parameters."""
    lines = []
    for pair, names in PAIRS.items():
        for role, each in zip(("target", "draft"), map(shape, names), strict=False):
            sizes = (each.layers, each.hidden, each.vocab_size / 1e3, (each.body_parameters + each.head_parameters) / 1e6)
            lines.append((pair, role, *map(round, sizes)))
    return framed(lines, ["pair", "role", "layers", "width", "vocabulary, thousands", "parameters, millions"])


def table(root: Path | None = None) -> str:
    """The answers on real pairs as Markdown, one line per question, with the machines underneath."""
    tables = found(REAL, root)
    if not tables:
        return "No table is stored yet: `make book` measures them."
    lines = answers(REAL, tables).dropna(subset=["ratio"])
    asked = pivoted(lines, ["question"], "temperature", "verdict").set_index("question").fillna("")
    asked = asked.rename(columns=lambda hot: f"T = {hot:g}" if hot else "greedy")
    rows = [["", *asked], ["---"] * (len(asked.columns) + 1), *asked.itertuples()]
    machines = "; ".join(dict.fromkeys(each.machine for each in tables.values()))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nMeasured on {machines}."


def with_results(text: str, results: str) -> str:
    """A page with the part between its markers replaced. ValueError if a marker is missing."""
    if START not in text or STOP not in text:
        raise ValueError(f"the page has no place for results; it needs the lines {START!r} and {STOP!r}")
    before, after = text.partition(START)[0], text.partition(STOP)[2]
    return f"{before}{START}\n\n{results}\n\n{STOP}{after}"


def update(page: Path, results: str) -> None:
    """Update a page's results, and from the stored tables its picture. ValueError if the page has no place for results."""
    text = page.read_text(encoding="utf-8")
    fresh = with_results(text, results)
    if fresh != text:
        write_text(fresh, page)
    if tables := found(REAL):
        figures.answers(*tables.values(), lines=answers(REAL, tables)).save(page.parent / PICTURE)


def measured(claim: dict[str, Any], root: Path | None = None) -> DataFrame:
    """Lines with ratio, low, high and verdict, one per sampling; none where a table is not stored."""
    reading, presets = claim.get("reading", ""), [claim.get("preset"), None]
    tables = [stored(name, root, preset) for name, preset in zip(TABLES.get(reading, ()), presets, strict=False)]
    frames = [table.frame for table in tables if table]
    if not frames or len(frames) < len(tables):
        return framed([], ["ratio", "low", "high", "verdict", "temperature"])
    if reading == "ratio":
        return ratio(frames[0], claim["mine"], claim["over"])
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
    return framed(lines, CLAIMED)


def judged(printed: float, line: dict[str, Any]) -> dict[str, str]:
    """A measured line beside a printed ratio: they agree where the interval contains it."""
    agrees = line["low"] <= printed <= line["high"]
    verdict = "agrees" if agrees else "differs: more here" if line["ratio"] > printed else "differs: less here"
    verdict = "not testable here" if isnan(line["low"]) else verdict
    heat = line.get("temperature")
    sampling = "" if heat is None else f"T = {heat:g}" if heat else "greedy"
    return {"sampling": sampling, "measured": line["verdict"], "verdict": verdict}

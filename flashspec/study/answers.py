"""The study's questions, each answered by one ratio in a stored race: for chapters and for the README.

`flashspec pages README.md` writes the answers and their picture into that page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashspec.models.synthetic import shape
from flashspec.models.writing import write_text
from flashspec.study import compare, figures
from flashspec.study.frames import DataFrame, framed, having, pivoted
from flashspec.study.quote import NOT_HERE, value, verdict
from flashspec.study.registry import stored
from flashspec.study.tables import Results

START, STOP = "<!-- results: written by `make book`, do not edit -->", "<!-- end of results -->"
PICTURE = Path("book") / "_static" / "answers.svg"
BY = (*compare.CONTEXT, "draft", "method", "head", "format", "finalize")
FACTS = ("temperature", "rule", "draft", "k", *compare.NUMBERS)
MAIN = {"draft": "main", "head": "dense", "finalize": "deferred"}
PAIRS = {
    "qwen": ("Qwen2.5-1.5B", "Qwen2.5-0.5B"), "smollm2": ("SmolLM2-135M",), "reference": ("reference-target", "reference-draft"),
}  # fmt: skip


class Question(NamedTuple):
    """How much faster the runs that `mine` names are than those that `over` names, in the race of one preset."""

    what: str
    race: str
    mine: Mapping[str, Any]
    over: Mapping[str, Any]
    chapter: int


def heads(what: str, head: str, race: str = "head_tar", draft: str = "main") -> Question:
    """A draft head over the dense head whose rows have the same number format."""
    same = {"draft": draft, "finalize": "deferred"}
    return Question(what, race, {"head": head, **same}, {"head": "dense", **same}, 5)


PLAIN, ONE_EXIT, EXITS = {"method": "baseline"}, {"method": "self_speculation"}, "hispec_end_to_end"
INT8 = {"head": "int8", "format": "int8", "draft": "main"}
QWEN = {"draft": "qwen", "finalize": "deferred"}
EAGER = {"draft": "qwen", "head": "flash", "finalize": "eager"}
SMOLLM2 = {"method": "self_speculation", "head": "dense"}
OWN = {"method": "draft_model", "draft": "qwen:int4", "head": "flash", "finalize": "deferred"}
SIX = {**OWN, "draft": "qwen-6:int4"}
TWO = {**OWN, "draft": "smollm2-2"}
BOTH = {**OWN, "method": "cascade", "draft": "qwen-6:int4+qwen:int4"}
PLAINLY = {**OWN, "head": "dense", "finalize": "eager"}
REAL = (
    Question("Qwen 1.5B with its 0.5B draft over plain decoding", "thesis", {**QWEN, "head": "flash"}, PLAIN, 2),
    heads("FlashHead over the dense head, 0.5B draft", "flash", "thesis", "qwen")._replace(chapter=2),
    Question("deferred over eager final token, 0.5B draft", "thesis", {**QWEN, "head": "flash"}, EAGER, 2),
    Question("SmolLM2 with its own exit over plain decoding", "smollm2_exits", SMOLLM2, PLAIN, 9),
    Question("HiSpec over a single exit, SmolLM2", "smollm2_exits", {**SMOLLM2, "method": "hispec"}, SMOLLM2, 9),
    Question("a six-layer draft over the full 0.5B draft", "taught", SIX, OWN, 6),
    Question("six layers, FlashHead and deferral over the 0.5B without them", "combined", SIX, PLAINLY, 10),
    Question("a cascade of both drafts over the 0.5B draft alone", "combined", BOTH, OWN, 10),
    Question("SmolLM2 with a two-layer draft over plain decoding", "smollm2_sweep", TWO, PLAIN, 6),
)
DECISIONS = (
    *REAL,
    Question("reference: a two-layer draft over plain decoding", "many-1", MAIN, PLAIN, 6),
    heads("reference: FlashHead over the dense head, two-layer draft", "flash", "sweep_350"),
    heads("reference: FlashHead over the dense head, one-layer draft", "flash", "sweep_350", "shallow"),
    Question("reference: int8 head over bfloat16 head", "sweep_350", INT8, {**INT8, "head": "dense", "format": "bfloat16"}, 5),
    Question("reference: deferred over eager final token", "end_to_end", MAIN, {**MAIN, "finalize": "eager"}, 3),
    Question("reference: designed draft over trained draft", "many-1", {"draft": "designed"}, {"draft": "main"}, 7),
    Question("reference: a single exit over plain decoding", EXITS, ONE_EXIT, PLAIN, 9),
    Question("reference: HiSpec over a single exit", EXITS, {"method": "hispec"}, ONE_EXIT, 9),
)
LOST = (
    *REAL[3:6], *REAL[7:],
    heads("reference: FlashHead over the dense head, two-layer draft", "flash", "end_to_end"),
    Question("reference: adaptive schedule over a fixed one", EXITS, {"method": "hispec_adaptive"}, {"method": "hispec"}, 9),
    Question("reference: designed draft over trained draft", "many-1", {"draft": "designed"}, {"draft": "main"}, 7),
    Question("reference: prompt lookup over plain decoding", EXITS, {"method": "lookup"}, PLAIN, 9),
    Question(
        "reference: int4 head over bfloat16 head", "head_tar", {"head": "int4", "format": "int4", "draft": "main"},
        {"head": "dense", "format": "bfloat16", "draft": "main"}, 5,
    ),
    heads("reference: ids of the context only", "in_context"),
    heads("reference: graph index (HNSW)", "hnsw"),
)  # fmt: skip


def found(questions: Sequence[Question], root: Path | None = None) -> dict[str, Results]:
    """The stored races that questions ask, by preset; nothing is measured."""
    tables = {name: stored("race", root, name) for name in dict.fromkeys(each.race for each in questions)}
    return {name: table for name, table in tables.items() if table}


def answers(questions: Sequence[Question], tables: Mapping[str, Results]) -> DataFrame:
    """One line per question, temperature and rule: the ratio with its interval; NOT_HERE where the table is missing."""
    lines = []
    for each in questions:
        same = {"question": each.what, "chapter": each.chapter}
        found = ratio(tables[each.race].frame, each).to_dict("records") if each.race in tables else []
        lines += [{**line, **same} for line in found or [{"verdict": NOT_HERE}]]
    return framed(lines).reindex(columns=["question", *FACTS, "chapter"])


def ratio(frame: DataFrame, question: Question) -> DataFrame:
    """The lines of a frame in which both sides of a question ran, paired by prompt and turn."""
    mine, below = (having(frame, side) for side in (question.mine, question.over))
    over = {name: value for name, value in question.over.items() if question.mine.get(name) != value}
    return compare.gain(frame[mine & (frame["method"] != "baseline") | below], over, BY, [])


def shown(lines: DataFrame) -> DataFrame:
    """The columns of answers that a page shows."""
    kept = lines.rename(columns={"temperature": "T", "verdict": "measured"})
    kept = kept[["question", "T", "rule", "measured", "prompts", "chapter"]]
    return kept.astype(object).where(kept.notna(), "").set_index("question")


def said(lines: DataFrame, question: Question, temperature: float = 1.0) -> str:
    """The verdict of the first line that answers a question at this temperature; NOT_HERE where there is none."""
    return verdict(lines, question=question.what, temperature=temperature)


def pays(lines: DataFrame, question: Question, temperature: float = 0.0) -> str:
    """What the interval of the first line that answers a question says: pays, loses, or no difference shown."""
    which = {"question": question.what, "temperature": temperature}
    low, high = (value(lines, side, **which) for side in ("low", "high"))
    return "pays" if low > 1 else "loses" if high < 1 else "no difference shown" if low <= high else NOT_HERE


def pairs() -> DataFrame:
    """The study's models: pair, role, layers, width, thousands of tokens in the vocabulary, millions of parameters."""
    named = [(pair, *each) for pair, names in PAIRS.items() for each in zip(("target", "draft"), map(shape, names), strict=False)]
    lines = [
        (*who, each.layers, each.hidden, round(each.vocab_size / 1e3), round((each.body_parameters + each.head_parameters) / 1e6))
        for *who, each in named
    ]
    return framed(lines, ["pair", "role", "layers", "width", "vocabulary, thousands", "parameters, millions"])


def table(root: Path | None = None) -> str:
    """The answers on real pairs as Markdown, one line per question, with the machines underneath."""
    tables = found(REAL, root)
    if not tables:
        return "No table is stored yet: `make book` measures them."
    lines = answers(REAL, tables).dropna(subset=["ratio"])
    asked = pivoted(lines, ["question"], "temperature", "verdict").set_index("question").fillna("")
    asked = asked.reindex(lines["question"].unique()).rename(columns=lambda hot: f"T = {hot:g}" if hot else "greedy")
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
        lines = answers(REAL, tables)
        figures.answers(*tables.values(), lines=lines).save(page.parent / PICTURE)

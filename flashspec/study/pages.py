"""The README's table and picture, written from stored tables: `flashspec pages README.md`."""

from __future__ import annotations

from pathlib import Path

from flashspec.models.writing import write_text
from flashspec.study import answers, figures

START, STOP = "<!-- results: written by `make book`, do not edit -->", "<!-- end of results -->"
PICTURE = Path("book") / "_static" / "answers.svg"


def table(root: Path | None = None) -> str:
    """The study's answers as Markdown, one line each, with the machines underneath."""
    tables = answers.found(answers.DECISIONS, root)
    if not tables:
        return "No table is stored yet: `make book` measures them."
    lines = answers.answers(answers.DECISIONS, tables).dropna(subset=["ratio"])
    columns = zip(lines["question"], lines["temperature"], lines["rule"], lines["verdict"], strict=True)
    body = "\n".join(f"| {what} | {hot:g} | {rule if hot else ''} | {said} |" for what, hot, rule, said in columns)
    machines = "; ".join(dict.fromkeys(each.machine for each in tables.values()))
    return f"| | T | rule | measured |\n|---|---|---|---|\n{body}\n\nMeasured on {machines}."


def with_results(text: str, results: str) -> str:
    """A page with the part between its markers replaced. ValueError if a marker is missing."""
    if START not in text or STOP not in text:
        raise ValueError(f"the page has no place for results; it needs the lines {START!r} and {STOP!r}")
    before, after = text.partition(START)[0], text.partition(STOP)[2]
    return f"{before}{START}\n\n{results}\n\n{STOP}{after}"


def update(page: Path) -> None:
    """Bring a page and the picture beside it up to date with the stored tables. ValueError if it has no place for results."""
    text = page.read_text(encoding="utf-8")
    fresh = with_results(text, table())
    if fresh != text:
        write_text(fresh, page)
    if tables := answers.found(answers.DECISIONS):
        lines = answers.answers(answers.DECISIONS, tables)
        figures.answers(*tables.values(), lines=lines).save(page.parent / PICTURE)

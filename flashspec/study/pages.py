"""The README's table and picture, written from stored tables: run as `python -m flashspec.study.pages README.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flashspec.model.writing import write_text
from flashspec.refusals import guarded
from flashspec.study import figures, readings
from flashspec.study.experiment import stored

START, STOP = "<!-- results: written by `make book`, do not edit -->", "<!-- end of results -->"
PICTURE = Path("book") / "_static" / "waterfall.svg"
SETTING = {"temperature": 1.0, "rule": "coupling", "finalize": "deferred"}


def lines(root: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """What was measured, the result in words, the machine: one line a result, from the tables that are there."""
    projection, step, whole, peers = (stored(name, root) for name in ("projection", "draft_step", "end_to_end", "peers"))
    if whole:
        yield from ((what, said, whole.machine) for what, said in decoding(whole.frame))
    if peers:
        yield (
            "baseline over transformers' generate, greedy",
            readings.peer_verdict(peers.frame, "plain", "bfloat16"),
            peers.machine,
        )
        said = readings.peer_verdict(peers.frame, "assisted", "bfloat16")
        yield "dense draft over transformers' assisted generation, greedy, same models and k", said, peers.machine
    if projection:
        said = readings.words(readings.projection_gain(projection.frame, "qwen3-0.6b", 256))
        yield "vocabulary projection at Qwen3-0.6B's shape, FlashHead (256 probes) over dense", said, projection.machine
    if step:
        said = readings.words(readings.step_gain(step.frame, "qwen3-0.6b", 256))
        yield "draft step at Qwen3-0.6B's shape, FlashHead (256 probes) over dense", said, step.machine


def decoding(frame: Any) -> Iterator[tuple[str, str]]:
    """The headline results of decoding: temperature 1, Gumbel coupling, deferred final token, each method at its best.

    A dense draft has the faster of the dense heads measured, bfloat16 or int8.
    """
    main, shallow = {"draft": "main", **SETTING}, {"draft": "shallow", **SETTING}
    greedy = {**main, "temperature": 0.0}
    eager_or_deferred = {name: value for name, value in main.items() if name != "finalize"}
    yield "baseline", f"{readings.rate(frame, 'baseline', **main):.0f} tokens/s"
    yield "dense draft, two layers", f"{readings.rate(frame, readings.DENSE, **main):.0f} tokens/s"
    yield "dense draft over baseline", readings.verdict(frame, readings.DENSE, "baseline", **main)
    sampled = {**main, "rule": "speculative"}
    yield "dense draft over baseline, speculative sampling", readings.verdict(frame, readings.DENSE, "baseline", **sampled)
    yield "dense draft over baseline, greedy", readings.verdict(frame, readings.DENSE, "baseline", **greedy)
    yield "FlashHead over dense draft head, two-layer draft", readings.verdict(frame, "flash", readings.DENSE, **main)
    yield "FlashHead over dense draft head, one-layer draft", readings.verdict(frame, "flash", readings.DENSE, **shallow)
    for name, draft in (("two-layer", "main"), ("one-layer", "shallow")):
        said = readings.verdict(frame, "flash", readings.DENSE, **{**greedy, "draft": draft})
        yield f"FlashHead over dense draft head, {name} draft, greedy", said
    yield "deferred over eager final token, dense draft", readings.deferral_verdict(frame, readings.DENSE, **eager_or_deferred)


def table(root: Path | None = None) -> str:
    """The results as Markdown, with the machines underneath."""
    found = list(lines(root))
    if not found:
        return "No table is stored yet: `make book` measures them."
    machines = "; ".join(dict.fromkeys(machine for _, _, machine in found))
    body = "\n".join(f"| {what} | {said} |" for what, said, _ in found)
    return f"| | measured |\n|---|---|\n{body}\n\nMeasured on {machines}."


def with_results(text: str, results: str) -> str:
    """A page with the part between its markers replaced. ValueError if a marker is missing."""
    if START not in text or STOP not in text:
        raise ValueError(f"the page has no place for results; it needs the lines {START!r} and {STOP!r}")
    before, after = text.partition(START)[0], text.partition(STOP)[2]
    return f"{before}{START}\n\n{results}\n\n{STOP}{after}"


def draw(picture: Path, root: Path | None = None) -> None:
    """Save the waterfall of the stored tables, if all three are there."""
    tables = [stored(name, root) for name in ("projection", "draft_step", "end_to_end")]
    if all(tables):
        figures.waterfall(*tables).save(picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring a README and its picture up to date with the stored tables."""
    parser = argparse.ArgumentParser(prog="flashspec.study.pages", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("readme", type=Path, help="the page with the places for results")
    given = parser.parse_args(arguments)
    return guarded(lambda: _updated(given.readme))


def _updated(page: Path) -> int:
    text = page.read_text(encoding="utf-8")
    fresh = with_results(text, table())
    if fresh != text:
        write_text(fresh, page)
    draw(page.parent / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The README's table and picture, written from stored tables: run as `python -m flashspec.study.pages README.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashspec.model.writing import write_text
from flashspec.refusals import guarded
from flashspec.study import chain, compare, figures
from flashspec.study.experiment import stored
from flashspec.study.quote import having, value, verdict

if TYPE_CHECKING:
    from pandas import DataFrame

START, STOP = "<!-- results: written by `make book`, do not edit -->", "<!-- end of results -->"
PICTURE = Path("book") / "_static" / "waterfall.svg"
DRAFTS = {"main": "two-layer", "shallow": "one-layer"}
SAMPLINGS = ("T = 1, coupling", "T = 1, speculative", "greedy")


def lines(root: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """What was measured, the result in words, the machine: one line a result, from the tables that are there."""
    race, peers = (stored("race", root, name) for name in ("end_to_end", "peers"))
    pieces = stored("parts", root, "draft_step")
    if race:
        yield from ((what, said, race.machine) for what, said in decoding(race.frame))
    if peers:
        found = chain.peers(peers.frame)
        for mode in dict.fromkeys(found["mode"]):
            said = verdict(found, mode=mode, dtype="bfloat16", side="flashspec")
            yield f"flashspec over transformers, {mode}, greedy", said, peers.machine
    if pieces:
        for _, line in links(pieces.frame).iterrows():
            yield f"{line['stage']} at {line['shape']}'s shape, FlashHead over dense", line["verdict"], pieces.machine


def decoding(frame: DataFrame) -> Iterator[tuple[str, str]]:
    """The headline results of decoding: dense draft heads over plain decoding, FlashHead over dense, deferred over eager.

    Both sides of a ratio have one number format, and each is at its best k and probes.
    """
    rates, heads, deferral = chain.rates(frame), chain.sampled(compare.like_for_like(frame)), chain.deferral(frame)
    here = [name for name in SAMPLINGS if name in set(rates["sampling"])]
    for name in here:
        yield f"plain decoding, {name}", f"{value(rates, 'rate', method='baseline', sampling=name):.0f} tokens/s"
    deferred = {"draft": "main", "finalize": "deferred"}
    for name in here:
        yield f"dense draft over plain decoding, {name}", verdict(rates, head="dense", sampling=name, **deferred)
    for draft, title in DRAFTS.items():
        for name in here:
            said = verdict(heads, head="flash", sampling=name, **{**deferred, "draft": draft})
            yield f"FlashHead over dense draft head, {title} draft, {name}", said
    both = {"draft": "main", "head": "dense"}
    for name in [name for name in here if len(having(deferral, sampling=name))]:
        yield f"deferred over eager final token, dense draft, {name}", verdict(deferral, sampling=name, **both)


def links(pieces: DataFrame) -> DataFrame:
    """FlashHead over dense for the projection and the step of the largest vocabulary timed, by turns."""
    found = chain.of_pieces(pieces)
    near = found.assign(far=(found["share"] - chain.SHARE).abs()).sort_values("far", kind="stable").drop_duplicates(chain.SAME)
    largest = pieces.loc[pieces["vocab"].idxmax(), "shape"]
    wanted = near[near["piece"].isin(chain.PIECES) & (near["shape"] == largest)]
    return wanted.assign(stage=wanted["piece"].map(chain.PIECES)).sort_values("piece")


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
    """Save the waterfall of the stored tables, if both are there."""
    tables = stored("race", root, "end_to_end"), stored("parts", root, "draft_step")
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

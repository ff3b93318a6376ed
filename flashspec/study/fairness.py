"""Whether two methods of a stored table may be compared: the bench's own refusals, applied to rows instead of live runs."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from flashspec.measure.bench import Comparison, Twin
from flashspec.measure.certificate import Certificate

if TYPE_CHECKING:
    from pandas import DataFrame


class Timed(NamedTuple):
    """One row as the bench sees a run."""

    repeat: int
    seconds: float
    emitted: int
    digest: str


def refusal(below: DataFrame, above: DataFrame, frame: DataFrame) -> str | None:
    """Why no speedup of `above` over `below` may be given, or None; `frame` is the whole table, for the float32 twins."""
    promise = "text" if set(above["rule"]) == {"coupling"} else "distribution"
    evidence = (*certificates(below), *certificates(above))
    return Comparison(timed(below), timed(above), twins(below, above, frame), evidence, promise).refusal


def timed(rows: DataFrame) -> list[Timed]:
    """Runs in the order of repeat and kind."""
    columns = ["repeat", "seconds", "emitted", "text_digest"]
    return [Timed(*cells) for cells in rows.sort_values(["repeat", "kind"])[columns].itertuples(index=False)]


def twins(below: DataFrame, above: DataFrame, frame: DataFrame) -> tuple[Twin, ...]:
    """Digests of the float32 texts of both sides, every pair of a kind; twins run at one k, so k and probes are left open."""
    one, other = twin_texts(below, frame), twin_texts(above, frame)
    return tuple(pair for kind in sorted(one.keys() & other.keys()) for pair in product(one[kind], other[kind]))


def twin_texts(rows: DataFrame, frame: DataFrame) -> dict[str, list[str]]:
    """Digests of the float32 texts by kind of prompt, each once, for the method and setting of these rows."""
    first = rows.iloc[0]
    same = frame[frame["twin_digest"] != ""]
    for column in ("draft", "method", "finalize", "temperature", "rule"):
        same = same[same[column] == first[column]]
    return {kind: sorted(set(digests)) for kind, digests in same.groupby("kind")["twin_digest"]}


def certificates(rows: DataFrame) -> tuple[Certificate, ...]:
    """One certificate for each kind whose timed text parts from plain decoding's."""
    parted = rows[rows["divergence_at"].notna()].drop_duplicates("kind")
    return tuple(
        Certificate(int(row.divergence_at), (0, 0), float(row.gap), float(row.noise), "timed") for row in parted.itertuples()
    )

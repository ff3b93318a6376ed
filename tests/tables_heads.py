"""Small tables about draft heads with known answers, for tests of readings and figures."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas
import tables
from test_compare import race

from flashspec.study import figures, parts, recall


def results(frame):
    """What `Results` offers to a figure."""
    return SimpleNamespace(frame=frame, machine=tables.MACHINE, path=Path("results/race/0123abcd.parquet"), origin={})


def pieces(gain=4.0, layers=(1, 4), turns=5):
    """A layer takes 1 ms, the dense head 4 ms, FlashHead 4 / gain; steps are sums; int8 takes 2 ms. All read 1 GB a second."""
    rows = []
    for turn, deep in product(range(turns), layers):
        those = (("dense", "bfloat16", 0, 4.0), ("int8", "int8", 0, 2.0), ("flash", "bfloat16", 64, 4.0 / gain))
        for head, form, probes, ms in those:
            for piece, seconds in (("body", deep), ("head", ms), ("step", deep + ms)):
                noise = 1e-3 * (1 + 0.01 * turn)
                rows.append(parts.Row(piece, "made-up", head, form, noise * seconds, turn, layers=deep, probes=probes,
                                      bytes=int(1e6 * ms), bandwidth=1e9))  # fmt: skip
    return pandas.DataFrame([asdict(row) for row in rows])


def recall_rows():
    """A FlashHead misses 40 of 1000 rows of code and 10 of 1000 of prose; calibrated, half of them."""
    rows = []
    sides = ((("code", 40), ("prose", 10)), ((0, 1.0), (64, 0.5)), ((16, 1), (64, 2)))
    for (kind, lost), (always, left), (size, worse) in product(*sides):
        rows.append(recall.Row("t", "d", "flash", "bfloat16", 1000, 64, 100, 12800, "spherical", 1, size, always, 4, kind=kind,
                               band="1-64", positions=1000, agreed=1000 - int(worse * left * lost), covered=900.0))  # fmt: skip
    return pandas.DataFrame([asdict(row) for row in rows])


DRAWN = {
    "head_speedups": lambda: figures.head_speedups(results(race())),
    "head_recall": lambda: figures.head_recall(results(recall_rows())),
    "head_cost": lambda: figures.head_cost(results(pieces())),
    "head_depth": lambda: figures.head_depth(results(pieces())),
}

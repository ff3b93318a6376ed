"""Made-up tables with planted answers: a race, pieces of heads and steps, and what heads miss."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas

from flashspec.study import parts, recall
from flashspec.study.race import Row

MACHINE = "a made-up machine, 2026-01-01"
SPEED = {("baseline", "dense"): 1.0, ("draft_model", "dense"): 1.5, ("draft_model", "int8"): 1.8, ("draft_model", "flash"): 1.65,
         ("lookup", "dense"): 0.8}  # fmt: skip


def results(frame):
    return SimpleNamespace(frame=frame, machine=MACHINE, path=Path("results/race/0123abcd.parquet"), origin={})


def line(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def race(prompts=16, turns=2, temperatures=(0.0, 1.0), ks=(1, 2), noise=0.02, speed=SPEED):
    """A made-up race: every method has its speed, at k = 2 a tenth more; prompts differ by up to three times."""
    dice, rows = np.random.default_rng(0), []
    for temperature, prompt, turn, ((method, head), factor) in product(temperatures, range(prompts), range(turns), speed.items()):
        for k in (0,) if method == "baseline" else ks:
            length = 0.1 * (1 + 2 * prompt / prompts) * (1 + noise * dice.standard_normal())
            rows.append(Row(
                "t", method, head, "int8" if head == "int8" else "bfloat16", k, "deferred", temperature, "coupling", "code", 64,
                length / factor / (1.0 if k < 2 else 1.1), turn, prompt, draft="main" if method == "draft_model" else "",
                text_digest="x", rounds=32, drafted=32 * k, judged=32 * k, accepted=32,
            ))  # fmt: skip
    return pandas.DataFrame([asdict(row) for row in rows], columns=list(Row.__dataclass_fields__))


def pieces(gain=4.0, layers=(1, 4), turns=5, shape="reference-draft"):
    """A layer takes 1 ms, the dense head 4 ms, FlashHead 4 / gain; steps are sums; int8 takes 2 ms. All read 1 GB a second.

    A check of n rows takes 2 + n ms.
    """
    rows = []
    heads = (("dense", "bfloat16", 0, 4.0, 1000), ("int8", "int8", 0, 2.0, 1000), ("flash", "bfloat16", 64, 4.0 / gain, 100),
             ("flash", "bfloat16", 8, 2.0 / gain, 10))  # fmt: skip
    for turn, deep, (head, form, probes, ms, scored) in product(range(turns), layers, heads):
        noise = 1e-3 * (1 + 0.01 * turn)
        facts = {"layers": deep, "probes": probes, "rows_scored": scored, "bytes": int(1e6 * ms), "bandwidth": 1e9}
        times = {"projection": ms, "body": deep, "head": ms, "step": deep + ms}
        rows += [parts.Row(piece, shape, head, form, noise * each, turn, **facts) for piece, each in times.items()]
        if head == "dense":
            rows += [parts.Row("check", shape, head, form, noise * (2 + n), turn, layers=deep, rows=n) for n in (1, 5)]
    return pandas.DataFrame([asdict(row) for row in rows])


def recall_rows():
    """A FlashHead misses 40 of 1000 rows of code and 10 of 1000 of prose; calibrated, half of them."""
    rows = []
    sides = ((("code", 40), ("prose", 10)), ((0, 1.0), (64, 0.5)), ((16, 1), (64, 2)))
    for (kind, lost), (always, left), (size, worse) in product(*sides):
        rows.append(recall.Row("t", "d", "flash", "bfloat16", 1000, 64, 100, 12800, "spherical", 1, size, always, 4, kind=kind,
                               band="1-64", positions=1000, agreed=1000 - int(worse * left * lost), covered=900.0))  # fmt: skip
    return pandas.DataFrame([asdict(row) for row in rows])

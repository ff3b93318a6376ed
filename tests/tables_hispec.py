"""A made-up race over hierarchies whose costs, gains and counts are known, and a table of exits."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas
import tables

from flashspec.study import exits, race

HEAD, TOKEN = {"dense": 1.0, "int8": 1.5, "flash": 1.1}, {"eager": 1.0, "deferred": 1.2}
PARTS = {"burst_seconds": 2e-3, "check_1_seconds": 2e-3, "check_2_seconds": 8e-3, "finalize_seconds": 1e-3, "step_seconds": 1e-2,
         "head_seconds": 5e-4, "prefill_seconds": 4e-3, "overhead_seconds": 0.0}  # fmt: skip


def frame(kind: type, rows: list[dict]) -> SimpleNamespace:
    """What `Results` offers to a figure."""
    known = {f.name: f.default for f in fields(kind)}
    made = pandas.DataFrame([{name: row.get(name, known[name]) for name in known} for row in rows], columns=list(known))
    numbers = {f.name: float for f in fields(kind) if "None" in str(f.type)}
    return SimpleNamespace(frame=made.astype(numbers), machine=tables.MACHINE, path=Path("results/race/0123.parquet"), origin={})


def row(method: str, prompt: int, turn: int, temperature: float, **changes) -> dict:
    """A run of 100 tokens: 40 middle checks and 20 full ones of drafts by twos; plain decoding takes a second."""
    deep, plain = method == "hispec", method == "baseline"
    counts = {"rounds": 20, "drafted": 80, "accepted": 70, "actions_1": 40, "waiting_1": 80, "kept_1": 60, "decided_1": 75}
    upper = {"actions_2": 20, "waiting_2": 60, "kept_2": 40, "decided_2": 50}
    known = {
        "target": "t", "method": method, "head": "dense", "format": "bfloat16", "k": 0 if plain else 2, "finalize": "deferred",
        "temperature": temperature, "rule": "coupling", "kind": "code", "emitted": 100, "turn": turn, "prompt": prompt,
        "exits": {"hispec": "2 4", "self_speculation": "2"}.get(method, ""), "interval": 4 if deep else 0, "text_digest": "x",
        "draft": "main" if method == "draft_model" else "", "layer_tokens": 1600 if plain else 2000, "seconds": 1.0,
        **PARTS, **({} if plain else counts), **(upper if deep else {"check_2_seconds": None}), **changes,
    }  # fmt: skip
    known["format"] = "int8" if known["head"] == "int8" else "bfloat16"
    slower = 1 + 0.05 * (prompt % 5) + 0.01 * turn
    return {**known, "seconds": known["seconds"] * slower}


def factorial() -> SimpleNamespace:
    """Every head and final token in every place that drafts; gains multiply, and an eager dense head is as fast as plain."""
    turns = list(product(range(16), range(2), (0.0, 1.0)))
    rows = [row("baseline", *turn) for turn in turns]
    rows += [
        row(method, *turn, head=head, finalize=token, probes=64 * (head == "flash"), seconds=1 / HEAD[head] / TOKEN[token],
            head_seconds=PARTS["head_seconds"] / HEAD[head])
        for method, head, token, turn in product(("draft_model", "self_speculation", "hispec"), HEAD, TOKEN, turns)
    ]  # fmt: skip
    return frame(race.Row, rows)


def quality() -> SimpleNamespace:
    """Of 100 positions a verifier accepts 60, wrongly 12, and wrongly rejects 8; two depths were trained for two steps."""
    counted = {"positions": 100, "same": 60, "right": 56, "both": 48, "in_top_5": 80}
    rows = [
        {"target": "t", "source": "prompts", "depth": d, "against": a, "layers": 16, "kind": kind,
         "overlap": {"code": 0.5, "prose": 0.6}[kind], "loss": 4.0, "against_loss": 3.5, **counted}
        for d, a, kind in product((1, 2, 4), (2, 4, 16), ("code", "prose")) if d < a
    ]  # fmt: skip
    rows += [
        {"target": "t", "source": "training", "depth": depth, "against": 16, "layers": 16, "step": step, "overlap": 0.7,
         "loss": 6.0 - step / 100, "against_loss": 3.0}
        for step, depth in product((100, 200), (2, 4))
    ]  # fmt: skip
    return frame(exits.Row, rows)

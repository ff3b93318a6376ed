"""Made-up tables with planted answers: races, hierarchies, drafts, pieces of heads and steps, exits, and what heads miss."""

from dataclasses import fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas

from flashspec.study import exits, parts, recall
from flashspec.study.race import Row
from flashspec.theory import tokens_per_check

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
                target="t", method=method, head=head, format="int8" if head == "int8" else "bfloat16", k=k, finalize="deferred",
                temperature=temperature, rule="coupling", kind="code", emitted=64, turn=turn, prompt=prompt, text_digest="x",
                seconds=length / factor / (1.0 if k < 2 else 1.1), draft="main" if method == "draft_model" else "",
                rounds=32, drafted=32 * k, judged=32 * k, accepted=32,
            ))  # fmt: skip
    return pandas.DataFrame(map(vars, rows), columns=list(Row.__dataclass_fields__))


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
    return pandas.DataFrame(map(vars, rows))


def recall_rows():
    """A FlashHead misses 40 of 1000 rows of code and 10 of 1000 of prose; calibrated, half of them."""
    rows = []
    sides = ((("code", 40), ("prose", 10)), ((0, 1.0), (64, 0.5)), ((16, 1), (64, 2)))
    for (kind, lost), (always, left), (size, worse) in product(*sides):
        rows.append(recall.Row("t", "d", "flash", "bfloat16", 1000, 64, 100, 12800, "spherical", 1, size, always, 4, kind=kind,
                               band="1-64", positions=1000, agreed=1000 - int(worse * left * lost), covered=900.0))  # fmt: skip
    return pandas.DataFrame(map(vars, rows))


HEAD, TOKEN = {"dense": 1.0, "int8": 1.5, "flash": 1.1}, {"eager": 1.0, "deferred": 1.2}
PARTS = {"burst_seconds": 2e-3, "check_1_seconds": 2e-3, "check_2_seconds": 8e-3, "finalize_seconds": 1e-3, "step_seconds": 1e-2,
         "head_seconds": 5e-4, "prefill_seconds": 4e-3, "overhead_seconds": 0.0}  # fmt: skip


def frame(kind, rows):
    """What `Results` offers to a figure."""
    known = {f.name: f.default for f in fields(kind)}
    made = pandas.DataFrame([{name: row.get(name, known[name]) for name in known} for row in rows], columns=list(known))
    numbers = {f.name: float for f in fields(kind) if "None" in str(f.type)}
    return results(made.astype(numbers))


def row(method, prompt, turn, temperature, **changes):
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


def factorial():
    """Every head and final token in every place that drafts; gains multiply, and an eager dense head is as fast as plain."""
    turns = list(product(range(16), range(2), (0.0, 1.0)))
    rows = [row("baseline", *turn) for turn in turns]
    rows += [
        row(method, *turn, head=head, finalize=token, probes=64 * (head == "flash"), seconds=1 / HEAD[head] / TOKEN[token],
            head_seconds=PARTS["head_seconds"] / HEAD[head])
        for method, head, token, turn in product(("draft_model", "self_speculation", "hispec"), HEAD, TOKEN, turns)
    ]  # fmt: skip
    return frame(Row, rows)


def quality():
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


LAYERS = {"wide": 1, "middle": 2, "deep": 4, "deeper": 8, "large": 2, "deeplarge": 8}
BODY = {"wide": 1.0e6, "middle": 1.0e6, "deep": 1.01e6, "deeper": 0.99e6, "large": 2.0e6, "deeplarge": 2.0e6}
ALPHA = {"wide": 0.72, "middle": 0.74, "deep": 0.76, "deeper": 0.78, "large": 0.8, "deeplarge": 0.82}
A_LAYER, CHECK, STEP, READ = 1e-4, 1.5e-3, 1.4e-3, 3e-3


def drafted(draft, k, prompt, temperature, luck=0.0):
    """One run of 100 tokens that takes what the model says; with luck, acceptance differs from prompt to prompt."""
    tar = tokens_per_check(min(0.95, ALPHA[draft] * (1 + luck)), k) if k else 1.0
    rounds, burst = 100 / tar, k * A_LAYER * LAYERS[draft] if k else None
    seconds = READ + (rounds * (burst + CHECK) if k else 100 * STEP)
    timed = {"step_seconds": STEP, "burst_seconds": burst, "check_1_seconds": CHECK if k else None, "prefill_seconds": READ}
    who = {"draft": draft, "layers": LAYERS[draft], "body": BODY[draft], "head_bytes": 1000, "steps": 7} if k else {}
    counts = {"rounds": rounds, "drafted": k * rounds, "accepted": 100 - rounds, "actions_1": rounds} if k else {}
    return Row(
        target="t", method="draft_model" if k else "baseline", head="dense", format="bfloat16", k=k, finalize="deferred",
        temperature=temperature, rule="coupling", kind="code", emitted=100, seconds=seconds, turn=0, prompt=prompt,
        text_digest="x", overhead_seconds=0.0, **who, **counts, **timed,
    )  # fmt: skip


def runs(drafts=tuple(LAYERS), ks=(1, 2, 4), temperatures=(0.0, 1.0), prompts=6, spread=0.0):
    dice = np.random.default_rng(0)
    rows = []
    for temperature in temperatures:
        for prompt in range(prompts):
            rows.append(drafted("wide", 0, prompt, temperature))
            luck = {draft: spread * dice.standard_normal() for draft in drafts}
            rows += [drafted(draft, k, prompt, temperature, luck[draft]) for draft in drafts for k in ks]
    frame = pandas.DataFrame(map(vars, rows))
    return frame.astype(dict.fromkeys(("rounds", "drafted", "accepted", "actions_1", "actions_2", "burst_seconds"), float))


def family(sign=1.0):
    """Perplexity falls as acceptance rises (or rises with it); the share of continuations found says nothing."""
    facts = {"kind": "code", "positions": 100, "right": 50, "asked": 8, "chosen": 5}
    return pandas.DataFrame([{"draft": d, "loss": 300 - sign * 100 * alpha, **facts} for d, alpha in ALPHA.items()])


PER_LAYER, PER_BYTE, TURNS = 5e-4, 1e-10, 5


def timed(shape, layers, size, piece="step", **more):
    depth, rows = more.pop("depth", layers), more.pop("rows", 1)
    seconds = PER_LAYER * layers + PER_BYTE * size
    facts = {"hidden": 64, "heads": 4, "ffn": 128, "body": more.pop("body", 100), "past": 8, "bandwidth": 2e10, "bytes": size}
    facts |= {"layers": layers, "depth": depth, "rows": rows, **more}
    return [parts.Row(piece, shape, "dense", "bfloat16", seconds * (1 + 0.01 * turn), turn, **facts) for turn in range(TURNS)]


def steps():
    rows = [*timed("OPT", 24, 10**7), *timed("OPT", 12, 10**7), *timed("OPT", 6, 2 * 10**7), *timed("OPT", 3, 10**6, body=50)]
    return pandas.DataFrame(map(vars, rows))

"""Made-up races of drafts, families and pieces with planted answers, and the figures drawn from them."""

from dataclasses import fields

import numpy as np
import pandas

from flashspec.study import papers, parts, race
from flashspec.theory import tokens_per_check

LAYERS = {"wide": 1, "middle": 2, "deep": 4, "deeper": 8, "large": 2, "deeplarge": 8}
BODY = {"wide": 1.0e6, "middle": 1.0e6, "deep": 1.01e6, "deeper": 0.99e6, "large": 2.0e6, "deeplarge": 2.0e6}
ALPHA = {"wide": 0.72, "middle": 0.74, "deep": 0.76, "deeper": 0.78, "large": 0.8, "deeplarge": 0.82}
A_LAYER, CHECK, STEP, READ = 1e-4, 1.5e-3, 1.4e-3, 3e-3
NAMES = [field.name for field in fields(race.Row)]


def row(draft, k, prompt, temperature, luck=0.0):
    """One run of 100 tokens that takes what the model says; with luck, acceptance differs from prompt to prompt."""
    tar = tokens_per_check(min(0.95, ALPHA[draft] * (1 + luck)), k) if k else 1.0
    rounds, burst = 100 / tar, k * A_LAYER * LAYERS[draft] if k else None
    seconds = READ + (rounds * (burst + CHECK) if k else 100 * STEP)
    timed = {"step_seconds": STEP, "burst_seconds": burst, "check_1_seconds": CHECK if k else None, "prefill_seconds": READ}
    who = {"draft": draft, "layers": LAYERS[draft], "body": BODY[draft], "head_bytes": 1000, "steps": 7} if k else {}
    counts = {"rounds": rounds, "drafted": k * rounds, "accepted": 100 - rounds, "actions_1": rounds} if k else {}
    return race.Row(
        "t", "draft_model" if k else "baseline", "dense", "bfloat16", k, "deferred", temperature, "coupling", "code", 100,
        seconds, 0, prompt, text_digest="x", overhead_seconds=0.0, **who, **counts, **timed,
    )  # fmt: skip


def runs(drafts=tuple(LAYERS), ks=(1, 2, 4), temperatures=(0.0, 1.0), prompts=6, spread=0.0):
    dice = np.random.default_rng(0)
    rows = []
    for temperature in temperatures:
        for prompt in range(prompts):
            rows.append(row("wide", 0, prompt, temperature))
            luck = {draft: spread * dice.standard_normal() for draft in drafts}
            rows += [row(draft, k, prompt, temperature, luck[draft]) for draft in drafts for k in ks]
    frame = pandas.DataFrame([[getattr(each, name) for name in NAMES] for each in rows], columns=NAMES)
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


def pieces(paper=True):
    rows = [*timed("OPT", 24, 10**7), *timed("OPT", 12, 10**7), *timed("OPT", 6, 2 * 10**7), *timed("OPT", 3, 10**6, body=50)]
    if paper:
        rows += [r for d in (papers.YAN_DEEP, papers.YAN_WIDE) for r in timed(d.shape, d.layers, 10**7)]
        rows += [
            r for n in (1, 9) for layers in (2, 4) for r in timed(papers.YAN_TARGET, layers, 10**6, "check", depth=80, rows=n)
        ]
    names = [field.name for field in fields(parts.Row)]
    return pandas.DataFrame([[getattr(each, name) for name in names] for each in rows], columns=names)

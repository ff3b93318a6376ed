"""Small tables of the draft study with known answers, and the files of parts that go with them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas
import tables

from flashspec.study import figures, papers
from flashspec.study.experiments.papers_table import Params, measure
from flashspec.theory import tokens_per_check

KS, KINDS = (2, 4), ("code", "prose")
ALPHA = {"wide": 0.8, "middle": 0.8, "deep": 0.8, "deeper": 0.78, "large": 0.85}
LAYERS = {"wide": 1, "middle": 2, "deep": 4, "deeper": 8, "large": 2}
BODY = {"wide": 1_000_000, "middle": 1_000_000, "deep": 1_010_000, "deeper": 990_000, "large": 2_000_000}
DRAFT_MS, CHECK_MS, STEP_MS, READ_MS = 0.1, 1.5, 1.4, 3.0
SHAPE = ("draft", "digest", "layers", "body", "head_bytes", "steps")


def facts(draft: str) -> dict:
    """The columns that say which draft a row is about."""
    return dict(zip(SHAPE, (draft, f"digest of {draft}", LAYERS[draft], BODY[draft], 1000, 200), strict=True))


def draft_ms(draft: str) -> float:
    """A draft step costs a tenth of a millisecond a layer."""
    return DRAFT_MS * LAYERS[draft]


def milliseconds(draft: str, k: int, alpha: float) -> float:
    """A run of 100 tokens on one prompt, by the model."""
    return READ_MS + 100 / tokens_per_check(alpha, k) * (k * draft_ms(draft) + CHECK_MS)


def trial(draft: str, kind: str, k: int, temperature: float, repeat: int, **changes) -> dict:
    """One run of a draft (k = 0: plain decoding) that takes what the model says, and one percent more each repeat."""
    tar = tokens_per_check(ALPHA[draft], k) if k else 1.0
    ms = milliseconds(draft, k, ALPHA[draft]) if k else READ_MS + 100 * STEP_MS
    known = {
        "target": "reference", "target_digest": "t", **facts(draft), "method": "dense" if k else "baseline", "probes": 0, "k": k,
        "temperature": temperature, "rule": "coupling", "kind": kind, "prompts": 1, "rounds": 100 / tar, "drafted": k * 100 / tar,
        "accepted": 100 - 100 / tar, "emitted": 100, "seconds": 1e-3 * ms * (1 + 0.01 * repeat), "repeat": repeat,
        "text_digest": f"{kind} {temperature}", "parts": "before+after",
    }  # fmt: skip
    return {**known, **changes}


def runs(folder: Path | None = None, **changes) -> SimpleNamespace:
    """Five drafts against plain decoding; with a folder, the tables of parts lie beside."""
    rows = [trial(d, kind, k, t, r, **changes) for d, kind, k, t, r in product(LAYERS, KINDS, KS, (0.0, 1.0), range(4))]
    plain = [trial("wide", kind, 0, t, r, **changes) for kind, t, r in product(KINDS, (0.0, 1.0), range(4))]
    found = tables.results("draft_throughput", rows + plain)
    if folder is not None:
        found.path = folder / "draft_throughput" / "0123abcd.csv"
        (folder / "draft_parts").mkdir(parents=True, exist_ok=True)
        for name in ("before", "after"):
            parts().to_csv(folder / "draft_parts" / f"{name}.csv", index=False)
    return found


def parts() -> pandas.DataFrame:
    """The parts of every draft, as the model has them."""
    ms = {f"check {k}": CHECK_MS - 0.1 for k in KS} | {"overhead": 0.1, "step": STEP_MS}
    ms |= {f"{name} {kind}": READ_MS for name in ("prefill", "read") for kind in KINDS}
    return pandas.DataFrame([
        {"draft": draft, "digest": f"digest of {draft}", "part": part, "seconds": 1e-3 * value, "repeat": repeat}
        for draft in LAYERS for part, value in {**ms, "draft dense": draft_ms(draft)}.items() for repeat in range(3)
    ])  # fmt: skip


def counts() -> SimpleNamespace:
    """What a replay on other prompts says: the acceptance that the runs have."""
    return tables.results("predicted_vs_measured", [
        {**facts(draft), "method": "dense", "probes": 0, "k": k, "temperature": t, "rule": "coupling", "kind": kind, "prompts": 1,
         "rounds": 100 / tokens_per_check(ALPHA[draft], k), "drafted": k * 100 / tokens_per_check(ALPHA[draft], k),
         "accepted": 1.0, "emitted": 100}
        for draft, k, t, kind in product(LAYERS, KS, (0.0, 1.0), KINDS)
    ])  # fmt: skip


def quality() -> SimpleNamespace:
    """Perplexity falls with TAR but for one draft; the share of continuations found says nothing."""
    return tables.results("draft_quality", [
        {**facts(draft), "kind": kind, "temperature": t, "rule": "coupling", "k": 4, "positions": 100,
         "loss": 300.0 - 100 * alpha, "right": int(100 * alpha), "asked": 8, "chosen": 5, "rounds": 20.0 - 10 * alpha, "drafted": 80.0, "accepted": 50.0,
         "emitted": 64}
        for (draft, alpha), kind, t in product(ALPHA.items(), KINDS, (0.0, 1.0))
    ])  # fmt: skip


PER_LAYER, PER_BYTE = 5e-4, 1e-10


def latency_row(group: str, shape: str, layers: int, what: str, rows: int, **changes) -> list[dict]:
    """Three repeats of a call that costs half a millisecond a layer and a nanosecond for ten bytes."""
    size = changes.pop("bytes", 1_000_000)
    timed = changes.pop("timed", layers)
    return [
        {"group": group, "shape": shape, "layers": layers, "timed": timed, "hidden": 64, "heads": 4, "ffn": 128,
         "body": 10, "head": 5, "what": what, "rows": rows, "bytes": size, "seconds": PER_LAYER * timed + PER_BYTE * size, "repeat": repeat,
         "bandwidth": 2e10}
        for repeat in range(3)
    ]  # fmt: skip


def latency(paper: bool = True) -> SimpleNamespace:
    """Steps by layers and bytes; the target is timed at two of its eighty layers."""
    rows = [
        r
        for layers, size in ((24, 10**7), (12, 10**7), (6, 2 * 10**7))
        for r in latency_row("OPT", f"OPT, {layers}", layers, "step", 1, bytes=size)
    ]
    if paper:
        for draft in (papers.YAN_DEEP, papers.YAN_WIDE):
            rows += latency_row("Sheared-LLaMA", draft.shape, draft.layers, "step", 1, bytes=10**7)
        rows += [
            r for n, timed in product((1, 9), (2, 4)) for r in latency_row("target", "LLaMA-65B", 80, "check", n, timed=timed)
        ]
    return tables.results("draft_latency", rows)


def away() -> SimpleNamespace:
    """The same drafts on a target where every run takes a quarter longer."""
    home, other = runs().frame, runs(target="fine-tuned").frame
    other["seconds"] *= (1.25 * (other["k"] > 0)) + (other["k"] == 0)
    found = tables.results("draft_generalises", [])
    found.frame = pandas.concat([home, other], ignore_index=True)
    return found


def printed() -> SimpleNamespace:
    """The papers' numbers as the experiment computes them."""
    return tables.results("papers_table", [row._asdict() for row in measure(Params())])


def drawings(folder: Path) -> dict:
    """Every figure of the draft study."""
    return {
        "draft_family": lambda: figures.draft_family(runs()),
        "draft_latency": lambda: figures.draft_latency(latency()),
        "draft_quality": lambda: figures.draft_quality(quality()),
        "draft_space": lambda: figures.draft_space(runs(folder), counts()),
        "generalises": lambda: figures.generalises(away()),
        "paper_gain": lambda: figures.paper_gain(latency()),
        "papers_table": lambda: figures.papers_table(printed()),
        "predicted_measured": lambda: figures.predicted_measured(runs(folder), counts()),
        "prediction_errors": lambda: figures.prediction_errors(runs(folder), counts()),
        "sweep": lambda: figures.sweep(runs()),
    }

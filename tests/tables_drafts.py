"""Small tables of the draft study with known answers, and the files of parts that go with them."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas
import tables

from flashspec.study import papers
from flashspec.study.experiments.papers_table import Params, measure
from flashspec.study.readings import where
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
        "text_digest": f"{kind} {temperature}", "parts": "between",
    }  # fmt: skip
    return {**known, **changes}


def runs(folder: Path | None = None, **changes) -> SimpleNamespace:
    """Five drafts against plain decoding; with a folder, the table of parts lies beside."""
    rows = [trial(d, kind, k, t, r, **changes) for d, kind, k, t, r in product(LAYERS, KINDS, KS, (0.0, 1.0), range(4))]
    plain = [trial("wide", kind, 0, t, r, **changes) for kind, t, r in product(KINDS, (0.0, 1.0), range(4))]
    found = tables.results("draft_throughput", rows + plain)
    if folder is not None:
        found.path = folder / "draft_throughput" / "0123abcd.csv"
        (folder / "draft_parts").mkdir(parents=True, exist_ok=True)
        parts().to_csv(folder / "draft_parts" / "between.csv", index=False)
    return found


def swept() -> SimpleNamespace:
    """The same runs with plain decoding beside every draft."""
    found = runs()
    plain = found.frame[found.frame["k"] == 0]
    others = [plain.assign(**facts(draft)) for draft in LAYERS if draft != "wide"]
    found.frame = pandas.concat([found.frame, *others], ignore_index=True)
    return found


def parts() -> pandas.DataFrame:
    """The parts of every draft, as the model has them: three turns beside each kind of prompt."""
    ms = {f"check {k}": CHECK_MS - 0.1 for k in KS} | {"overhead": 0.1, "step": STEP_MS, "prefill": READ_MS}
    ms |= {"finalize": STEP_MS, "head dense": DRAFT_MS / 2}
    return pandas.DataFrame([
        {"draft": draft, "part": part, "kind": kind, "seconds": 1e-3 * value, "repeat": 3 * place + repeat}
        for draft, (place, kind), repeat in product(LAYERS, enumerate(KINDS), range(3))
        for part, value in {**ms, **{f"burst {k} dense": k * draft_ms(draft) for k in KS}}.items()
    ])  # fmt: skip


def counts() -> SimpleNamespace:
    """What a replay on other prompts says: the acceptance that the runs have."""
    return tables.results("predicted_vs_measured", [
        {**facts(draft), "method": "dense", "probes": 0, "k": k, "temperature": t, "rule": "coupling", "kind": kind, "prompts": 1,
         "rounds": 100 / tokens_per_check(ALPHA[draft], k), "drafted": k * 100 / tokens_per_check(ALPHA[draft], k),
         "accepted": 1.0, "emitted": 100}
        for draft, k, t, kind in product(LAYERS, KS, (0.0, 1.0), KINDS)
    ])  # fmt: skip


def three_kinds() -> SimpleNamespace:
    """The same counts with one more kind of prompt, so that there is an interval."""
    found = counts()
    found.frame = pandas.concat([found.frame, where(found.frame, kind="code").assign(kind="tests")], ignore_index=True)
    return found


def quality() -> SimpleNamespace:
    """Perplexity falls as TAR rises; the share of continuations found says nothing."""
    fixed = {
        "rule": "coupling",
        "k": 4,
        "positions": 100,
        "asked": 8,
        "chosen": 5,
        "drafted": 80.0,
        "accepted": 50.0,
        "emitted": 64,
    }
    return tables.results("draft_quality", [
        {**facts(draft), **fixed, "kind": kind, "temperature": t, "loss": 300.0 - 100 * alpha, "right": int(100 * alpha),
         "rounds": 20.0 - 10 * alpha}
        for (draft, alpha), kind, t in product(ALPHA.items(), KINDS, (0.0, 1.0))
    ])  # fmt: skip


PER_LAYER, PER_BYTE = 5e-4, 1e-10
SIZES = ((24, 10**7), (12, 10**7), (6, 2 * 10**7))


def latency_row(group: str, shape: str, depth: tuple[int, int], what: str, call: tuple[int, int]) -> list[dict]:
    """Three repeats of a call (rows, bytes) on a shape (layers, layers timed), which takes time for its layers and bytes."""
    (layers, timed), (rows, size) = depth, call
    fixed = {"hidden": 64, "heads": 4, "ffn": 128, "body": 10, "head": 5, "bandwidth": 2e10}
    return [
        {**fixed, "group": group, "shape": shape, "layers": layers, "timed": timed, "what": what, "rows": rows, "bytes": size,
         "seconds": PER_LAYER * timed + PER_BYTE * size, "repeat": repeat}
        for repeat in range(3)
    ]  # fmt: skip


def latency(paper: bool = True) -> SimpleNamespace:
    """Steps by layers and bytes; the target is timed at two of its eighty layers."""
    shapes = [("OPT", f"OPT, {layers}", (layers, layers), "step", (1, size)) for layers, size in SIZES]
    if paper:
        drafts = (papers.YAN_DEEP, papers.YAN_WIDE)
        shapes += [("Sheared-LLaMA", d.shape, (d.layers, d.layers), "step", (1, 10**7)) for d in drafts]
        shapes += [("target", papers.YAN_TARGET, (80, timed), "check", (n, 10**6)) for n, timed in product((1, 9), (2, 4))]
    return tables.results("draft_latency", [row for shape in shapes for row in latency_row(*shape)])


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


SCRATCH = tempfile.TemporaryDirectory()


def beside() -> SimpleNamespace:
    """The runs, with the tables of their parts in a folder that goes when the process does."""
    return runs(Path(SCRATCH.name))


DRAWN = tables.drawn(
    draft_family=[runs], draft_latency=[latency], draft_lengths=[beside, three_kinds], draft_quality=[quality],
    draft_space=[beside, counts], generalises=[away], paper_gain=[latency], papers_table=[printed],
    predicted_measured=[beside, counts], prediction_errors=[beside, counts], sweep=[swept],
)  # fmt: skip

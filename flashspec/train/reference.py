"""The reference models from scratch: corpus, target, 4-bit target, drafts, and what ships of the family.

Every step is resumable and skipped where its result exists; weights that ship are written once and then frozen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashspec.decoding.models import load
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.recall import agreement, calibrate_always
from flashspec.measure.trace import Trace, check_target, proposals
from flashspec.models.family import DESIGNED
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_json, write_text
from flashspec.train import corpus
from flashspec.train.design import speculative
from flashspec.train.distill import Distillation, acceptance, distill
from flashspec.train.package import carry, write_digests, write_tokenizer
from flashspec.train.quantize import quantize_awq
from flashspec.train.target import REFERENCE, WINDOW, Recipe, exit_scores, train_target
from flashspec.train.texts import windows as windows_of
from flashspec.train.trainer import Schedule

GROWTH = ((0, 6), (850, 16))
LONG = Recipe(Schedule(1300, 450), growth=GROWTH, sequences=4, length=512)
LATE = Schedule(2400, 1100, muon_lr=0.015, adam_lr=2e-3, handover=1700)
TARGET_PHASES = (
    Recipe(Schedule(800, 0), growth=GROWTH),
    LONG,
    replace(LONG, schedule=LATE, exits=(2, 2, 4), exit_weight=0.15, imitation_weight=0.3),
    replace(
        LONG, schedule=replace(LATE, steps=2300, decay=943, handover=1900),
        exits=(2, 2, 2, 4), exit_weight=0.1, imitation_weight=1.0, exit_rows=1024,
    ),
    replace(
        LONG, schedule=replace(LATE, steps=2250, decay=825, handover=2000),
        exits=(2, 2, 2, 2, 2, 4), exit_weight=0.1, imitation_weight=2.0, exit_rows=1024,
    ),
    replace(
        LONG, schedule=replace(LATE, steps=2260, decay=858, handover=None),
        exits=(2, 2, 4), exit_weight=0.1, imitation_weight=0.5,
    ),
)  # fmt: skip
NARROW = Distillation(
    layers=2, schedule=Schedule(2800, 2200, warmup=100, muon_lr=0.02, adam_lr=2e-3, save_every=100),
    hidden=256, ffn=1024, heads=4, dtype="bfloat16",
)  # fmt: skip
SHALLOW = Distillation(layers=1, schedule=Schedule(220, 180, warmup=10, muon_lr=0.01, adam_lr=1e-3))
OWN = Schedule(2000, 1800, warmup=50, muon_lr=0.01, adam_lr=1e-3, save_every=100)
DRAFTS = {
    "narrow": (NARROW, replace(NARROW, schedule=OWN, own=1920)),
    "shallow": (SHALLOW,),
}
CALIBRATION_FILES, CALIBRATION_BLOCKS = 48, 8
CLUSTER_SIZE = 16
PROPOSALS = "proposals.json"
LIMIT = 92_000_000  # bytes of all shipped models
FACTS = ("README.md", "config.json", "design.json", "choice.json", "curve.jsonl", "digests.json", "speculative.json")
LICENCE = "Weights: Apache-2.0. Prompts and training text: the Python standard library, PSF License Agreement."


def prepare(work: Path) -> dict[str, Any]:
    """Tokenizer and id streams of the standard library in work/data; the corpus's card."""
    return corpus.prepare(work / "data", REFERENCE.vocab_size)


@contextmanager
def _finished(folder: Path, work: Path) -> Iterator[Path]:
    """A model's folder while it is made, completed with the corpus's tokenizer."""
    with fresh_folder(folder) as part:
        yield part
        write_tokenizer(part, work / "data" / "tokenizer.json")


def build_target(work: Path) -> Path:
    """Train the target through its phases and write it as a dense float32 folder."""
    folder, branch = work / "dense", None
    if not (folder / "config.json").exists():
        for number, recipe in enumerate(TARGET_PHASES):
            run = work / f"target-{number}"
            model = train_target(work / "data", run, recipe, branch)
            branch = run / "checkpoint.pt"
        with _finished(folder, work) as part:
            model.save(part, dtype="float32")
    return folder


def quantise_target(work: Path) -> Path:
    """The target as a 4-bit AWQ folder, calibrated on training files."""
    folder = work / "models" / "target"
    if not (folder / "config.json").exists():
        chosen = list(islice(corpus.library(0), CALIBRATION_FILES))
        quantize_awq(work / "dense", folder, chosen, blocks=CALIBRATION_BLOCKS)
    return folder


def build_draft(work: Path, name: str) -> Path:
    """Distil one draft on the quantised target and write it as a bfloat16 folder."""
    folder = work / "models" / name
    if not (folder / "config.json").exists():
        target = Transformer.load(work / "models" / "target", dtype="float32", weights="dense")
        draft: Any = None
        for number, recipe in enumerate(DRAFTS[name]):
            draft = distill(target, work / "data", work / f"{name}-{number}", recipe, draft)
        with _finished(folder, work) as part:
            draft.save(part, dtype="bfloat16")
    return folder


@torch.no_grad()
def _with_rows(folder: Path, stream: np.ndarray, windows: int) -> tuple[Transformer, Tensor]:
    """A draft as it ships, and the rows [n, hidden] of its float32 twin over evenly spaced windows that fit its context."""
    twin = Transformer.load(folder, dtype="float32")
    ids = windows_of(stream[:-1], windows, min(WINDOW, twin.config.context))
    return Transformer.load(folder), twin.rows(ids).flatten(0, 1)


def add_flash_head(folder: Path, stream: np.ndarray, windows: int = 16) -> None:
    """Cluster a draft's head and put it into the draft's folder, with its default probes.

    The tokens it misses most often there on every second row of a stream of training text are always scored.
    """
    model, rows = _with_rows(folder, stream, windows)
    head = FlashHead.build(model.head_weight, model.norm, cluster_size=CLUSTER_SIZE)
    always = calibrate_always(head, DenseHead(model.norm, model.head_weight), rows[::2])
    head.with_always(always).save(folder)


def head_scores(folder: Path, held: np.ndarray, windows: int = 24) -> list[dict[str, Any]]:
    """Top-1 agreement with the dense head on held-out text: as shipped, and with half the probes."""
    model, rows = _with_rows(folder, held, windows)
    dense, shipped, found = DenseHead(model.norm, model.head_weight), FlashHead.load(folder, model.head_weight, model.norm), []
    for plan, probes in (("as shipped", shipped.probes), ("half the probes", shipped.probes // 2)):
        head = shipped.with_probes(max(1, probes))
        share, same = head.rows_scored / head.vocab_size, agreement(head, dense, rows)
        found.append({"plan": plan, "probes": head.probes, "scored_share": round(share, 4), "agreement": round(same, 4)})
    return found


@torch.no_grad()
def scores(work: Path, windows: int = 48) -> dict[str, dict[str, Any]]:
    """Held-out quality of target, exits, drafts and their FlashHeads, as shipped, and what AWQ cost."""
    held, models = np.load(work / "data" / "held_out.npy"), work / "models"
    target, top = Transformer.load(models / "target", dtype="float32", weights="dense"), REFERENCE.layers
    before = exit_scores(Transformer.load(work / "dense"), held, (top,), windows)[f"loss_{top}"]
    whole = exit_scores(target, held, (2, 4, top), windows)
    found: dict[str, Any] = {"target": whole | {"awq_perplexity_ratio": float(np.exp(whole[f"loss_{top}"] - before))}}
    for name in DRAFTS:
        draft = Transformer.load(models / name, dtype="float32")
        found[name] = {**acceptance(target, draft, held, windows), "flash_head": head_scores(models / name, held)}
    return found


def finish(work: Path, card: dict[str, Any], found: dict[str, Any]) -> None:
    """Model cards, curves, prompts and digests; after this a folder is complete."""
    from tokenizers import Tokenizer

    recipes: dict[str, Any] = {"target": TARGET_PHASES, **DRAFTS}
    for name, phases in recipes.items():
        folder, recipe = work / "models" / name, [asdict(phase) for phase in phases]
        about = {"made": date.today().isoformat(), "held_out": found[name], "corpus": card, "recipe": recipe}
        lines = [f"# flashspec reference model: {name}", "", LICENCE, "", "```json", json.dumps(about, indent=2), "```", ""]
        write_text("\n".join(lines), folder / "README.md")
        curves = sorted(work.glob(f"{name}*/curve.jsonl"))
        write_text("".join(curve.read_text() for curve in curves), folder / "curve.jsonl")
        write_digests(folder)
    root = corpus.library_root()
    prompts = corpus.choose(corpus.split(root)[1], root, Tokenizer.from_file(str(work / "data" / "tokenizer.json")))
    write_json({"licence": LICENCE, "prompts": prompts}, work / "models" / "prompts.json")


def make(work: Path) -> Path:
    """Everything, from the corpus to finished folders in work/models; hours, resumable at any point."""
    card = prepare(work)
    build_target(work)
    quantise_target(work)
    for name in DRAFTS:
        build_draft(work, name)
        add_flash_head(work / "models" / name, np.load(work / "data" / "train.npy"))
    finish(work, card, scores(work))
    return work / "models"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ship(point: Path, shelf: Path, stream: np.ndarray, k: int) -> Path:
    """Copy a finished point into `shelf` as the designed draft, with a FlashHead calibrated on the stream.

    Raises FileNotFoundError for an unfinished point, FileExistsError where a designed draft ships already, ValueError where
    all shipped models together would exceed LIMIT bytes; then nothing is written.
    """
    out, about = shelf / DESIGNED, speculative(Path("flashspec") / "data" / DESIGNED, k)
    if not (point / "digests.json").exists():
        raise FileNotFoundError(f"{point} is no finished point; build it with `flashspec draft family {point.name}`")
    if out.exists():
        raise FileExistsError(f"a designed draft ships already and is frozen; remove {out} if it has not been published")
    with fresh_folder(out, [point]) as part:
        shutil.copytree(point, part, dirs_exist_ok=True)
        write_json(about, part / "speculative.json")
        card = part / "README.md"
        facts = card.read_text(encoding="utf-8").partition("\n\n")[2] if card.exists() else ""
        card.write_text(f"# flashspec reference model: {DESIGNED}\n\n{LICENCE}\n\n{facts}", encoding="utf-8")
        write_digests(part)
        add_flash_head(part, stream)
        write_digests(part)
        if (total := size_of(shelf)) > LIMIT:
            raise ValueError(f"all shipped models would take {total:,} bytes and {LIMIT:,} are allowed; ship a smaller point")
    return out


def record_point(point: Path, target: str | Path, trace: Trace, out: Path) -> Path:
    """Keep a point's recipe, digests, curve, and what it proposes for every token of a trace of its target; no weights.

    The proposals are the dense head's on float32 layers. An earlier record is replaced. Raises ValueError for a trace of
    another target; then nothing is written.
    """
    models = load(target, point, "float32", "cpu", "dense")
    check_target(trace, models.folders["target"])
    with fresh_folder(out / point.name, [point], PROPOSALS) as found:
        carry(point, found, FACTS)
        pairs = zip(trace.told, proposals(trace, models), strict=True)
        texts = [{"kind": told.kind, "tokens": told.tokens, "proposed": ids} for told, ids in pairs]
        write_json({"target": trace.target, "texts": texts}, found / PROPOSALS)
    return out / point.name

"""The reference models from scratch: corpus, target, 4-bit target, drafts, and the records of the family.

Every step is resumable and skipped where its result exists; weights that ship are written once and then frozen.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashspec.heads.base import DenseHead
from flashspec.heads.flash import FlashHead, calibrate_always
from flashspec.models.family import Design
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_digests, write_text
from flashspec.train import corpus
from flashspec.train.design import Material, distill
from flashspec.train.quantize import quantize_awq
from flashspec.train.target import WINDOW, Recipe, initialise, train_target
from flashspec.train.texts import Texts, write
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
WIDTH = 256  # of the narrow draft
OWN_LENGTH = 256  # tokens of a text that the target writes for the drafts
NARROW = Design(
    layers=2, heads=4, ffn=1024, length=WINDOW, steps=2800, decay=2200, warmup=100, muon_lr=0.02, adam_lr=2e-3,
    save_every=100, written=0, prompt=48, dtype="bfloat16",
)  # fmt: skip
DRAFTS = {
    "narrow": (NARROW, replace(NARROW, steps=2000, decay=1800, warmup=50, muon_lr=0.01, adam_lr=1e-3, written=1920)),
    "shallow": (Design(layers=1, length=WINDOW, steps=220, decay=180, written=0),),
}
CALIBRATION_FILES, CALIBRATION_BLOCKS = 48, 8
CLUSTER_SIZE = 16
LICENCE = "Weights: Apache-2.0. Training text: the Python standard library, PSF License Agreement."


@contextmanager
def _finished(folder: Path, work: Path) -> Iterator[Path]:
    """A model's folder in the making, completed with the corpus's tokenizer."""
    with fresh_folder(folder) as part:
        yield part
        corpus.write_tokenizer(part, work / "data" / "tokenizer.json")


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


def slice_of(target: Transformer, layers: int) -> Transformer:
    """A new float32 model with the target's embedding, final norm and first `layers` layers."""
    draft = Transformer(replace(target.config, layers=layers))
    mine = target.state_dict()
    draft.load_state_dict({name: mine[name] for name in draft.state_dict()})
    return draft


def narrow(target: Transformer, design: Design, hidden: int) -> Transformer:
    """A new float32 model of `hidden` columns: the embedding's principal directions, layers seeded."""
    c = target.config
    heads, ffn = design.heads or c.heads, design.ffn or c.ffn
    shape = replace(c, layers=design.layers, hidden=hidden, ffn=ffn, heads=heads, tied=True)
    draft = Transformer(replace(shape, kv_heads=min(heads, c.kv_heads)))
    initialise(draft, design.seed)
    weight = target.head_weight.detach().float()
    _, axes = torch.linalg.eigh(weight.T @ weight)
    with torch.no_grad():
        draft.embed.weight.copy_(weight @ axes[:, -hidden:])
        draft.norm.weight.fill_(float(target.norm.weight.square().mean().sqrt()))
    return draft


def build_draft(work: Path, name: str) -> Path:
    """Distil one draft on the quantised target and write it as a bfloat16 folder."""
    folder = work / "models" / name
    if not (folder / "config.json").exists():
        target = Transformer.load(work / "models" / "target", dtype="float32", weights="dense")
        first, *_ = DRAFTS[name]
        draft = narrow(target, first, WIDTH) if name == "narrow" else slice_of(target, first.layers)
        for number, design in enumerate(DRAFTS[name]):
            distill(draft, target, material_of(target, work, design), work / f"{name}-{number}", design)
        with _finished(folder, work) as part:
            draft.save(part, dtype="bfloat16")
    return folder


def material_of(target: Transformer, work: Path, design: Design) -> Material:
    """The corpus in work/data, and at every other step texts that the target wrote, if the design wants them."""
    stream, held = (np.load(work / "data" / name) for name in ("train.npy", "held_out.npy"))
    own = None
    if design.written:
        writer = copy.deepcopy(target).bfloat16() if design.dtype == "bfloat16" else target
        own = write(writer, stream, work / "own", replace(design, length=OWN_LENGTH))
    return Material(Texts(design.seed, stream, own), held, work / f"teacher-{design.written}")


def add_flash_head(folder: Path, stream: np.ndarray, windows: int = 16) -> None:
    """Cluster a draft's head and store it in the draft's folder, with its default probes.

    The tokens that it misses most often, on windows of a stream of training text, are always scored.
    """
    model, twin = Transformer.load(folder), Transformer.load(folder, dtype="float32")
    with torch.no_grad():
        rows = twin.rows(windows_of(stream[:-1], windows, min(WINDOW, twin.config.context))).flatten(0, 1)
    head = FlashHead.build(model.head_weight, model.norm, cluster_size=CLUSTER_SIZE)
    always = calibrate_always(head, DenseHead(model.norm, model.head_weight), rows[::2])
    head.with_plan(always=always).save(folder)


def finish(work: Path, card: dict[str, Any]) -> None:
    """Write model cards, curves and digests; after this a folder is complete."""
    recipes: dict[str, Any] = {"target": TARGET_PHASES, **DRAFTS}
    for name, phases in recipes.items():
        folder, recipe = work / "models" / name, [asdict(phase) for phase in phases]
        about = {"made": date.today().isoformat(), "corpus": card, "recipe": recipe}
        lines = [f"# flashspec reference model: {name}", "", LICENCE, "", "```json", json.dumps(about, indent=2), "```", ""]
        write_text("\n".join(lines), folder / "README.md")
        curves = sorted(work.glob(f"{name}*/curve.jsonl"))
        write_text("".join(curve.read_text() for curve in curves), folder / "curve.jsonl")
        write_digests(folder)


def make(work: Path, card: dict[str, Any]) -> Path:
    """From the corpus in work/data, described by `card`, to finished folders in work/models; resumable."""
    dense, target = build_target(work), work / "models" / "target"
    if not (target / "config.json").exists():
        quantize_awq(dense, target, corpus.sources(count=CALIBRATION_FILES), blocks=CALIBRATION_BLOCKS)
    for name in DRAFTS:
        build_draft(work, name)
        add_flash_head(work / "models" / name, np.load(work / "data" / "train.npy"))
    finish(work, card)
    return work / "models"

"""The reference models from scratch: corpus, target, 4-bit target, drafts, and the records of the family.

Every step is resumable and skipped where its result exists; weights that ship are written once and then frozen.
"""

from __future__ import annotations

import copy
import tomllib
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from flashspec.decoding.models import SHIPPED
from flashspec.heads.flash import FlashHead
from flashspec.models.family import Design
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_digests, write_text
from flashspec.train import corpus
from flashspec.train.design import distill, write_card
from flashspec.train.quantize import quantize_awq
from flashspec.train.target import WINDOW, Recipe, initialise, train_target
from flashspec.train.texts import Texts, windows, written

WIDTH = 256  # of the narrow draft
OWN_LENGTH = 256  # tokens of a text that the target writes for the drafts
PHASES = tomllib.loads((SHIPPED / "reference.toml").read_text(encoding="utf-8"))
TARGET: tuple[Recipe, ...] = msgspec.convert(PHASES.pop("target"), tuple[Recipe, ...])
DRAFTS: dict[str, tuple[Design, ...]] = msgspec.convert(PHASES, dict[str, tuple[Design, ...]])
CALIBRATION_FILES, CALIBRATION_BLOCKS = 48, 8
LICENCE = "Weights: Apache-2.0. Training text: the Python standard library, PSF License Agreement."


def finished(model: Transformer, folder: Path, work: Path, dtype: str) -> None:
    """Write a model's folder, with the corpus's tokenizer."""
    with fresh_folder(folder) as part:
        model.save(part, dtype)
        corpus.write_tokenizer(part, work / "data" / "tokenizer.json")


def build_target(work: Path) -> Path:
    """Train the target through its phases and write it as a dense float32 folder."""
    folder, branch = work / "dense", None
    if not (folder / "config.json").exists():
        for number, recipe in enumerate(TARGET):
            run = work / f"target-{number}"
            model = train_target(work / "data", run, recipe, branch)
            branch = run / "checkpoint.pt"
        finished(model, folder, work, "float32")
    return folder


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


def build_draft(work: Path, name: str) -> None:
    """Distil one draft on the quantised target and write it as a bfloat16 folder."""
    folder, designs = work / "models" / name, DRAFTS[name]
    if (folder / "config.json").exists():
        return
    target, layers = Transformer.load(work / "models" / "target", dtype="float32", weights="dense"), designs[0].layers
    draft = narrow(target, designs[0], WIDTH) if name == "narrow" else copy.deepcopy(target.with_layers(target.layers[:layers]))
    for number, design in enumerate(designs):
        distill(draft, target, texts_of(target, work, design), work / f"{name}-{number}", design)
    finished(draft, folder, work, "bfloat16")


def texts_of(target: Transformer, work: Path, design: Design) -> Texts:
    """The corpus in work/data, and at every other step texts that the target wrote, if the design wants them."""
    stream, held = (np.load(work / "data" / name) for name in ("train.npy", "held_out.npy"))
    own = None
    if design.written:
        writer = copy.deepcopy(target).bfloat16() if design.dtype == "bfloat16" else target
        own = written(writer, stream, work / "own", replace(design, length=OWN_LENGTH))
    return Texts(design.seed, stream, own, held, work / f"teacher-{design.written}")


def add_flash_head(folder: Path, stream: np.ndarray, count: int = 16) -> None:
    """Build a draft's head for its rows on windows of a stream of training text, and store it in the draft's folder."""
    model, twin = Transformer.load(folder), Transformer.load(folder, dtype="float32")
    with torch.no_grad():
        rows = twin.rows(windows(stream[:-1], count, min(WINDOW, twin.config.context))).flatten(0, 1)
    FlashHead.build(model.head_weight, model.norm, queries=rows).save(folder)


def finish(work: Path, card: dict[str, Any]) -> None:
    """Write model cards, curves and digests; after this a folder is complete."""
    for name, phases in {"target": TARGET, **DRAFTS}.items():
        folder, recipe = work / "models" / name, [asdict(phase) for phase in phases]
        about = {"made": date.today().isoformat(), "corpus": card, "recipe": recipe}
        write_card(folder, f"flashspec reference model: {name}", LICENCE, about)
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

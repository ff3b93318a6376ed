"""The reference models from scratch: corpus, target, 4-bit target, drafts, and the records of the family.

The target is an early-exit model after LayerSkip (Elhoushi et al. 2024). It grows while it trains: the upper layers start as the
identity and join in stages. Every step is resumable and skipped where its result exists; weights that ship are written once and
then frozen.
"""

from __future__ import annotations

import copy
import tomllib
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.decoding.models import SHIPPED
from flashspec.heads.flash import FlashHead
from flashspec.models.config import ModelConfig
from flashspec.models.exits import rows_at
from flashspec.models.family import Design
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_digests, write_text
from flashspec.train import corpus
from flashspec.train.design import distill, write_card
from flashspec.train.quantize import quantize_awq
from flashspec.train.texts import Texts, overlap, windows, written
from flashspec.train.trainer import Run, Schedule, cross_entropy, disagreement

REFERENCE = ModelConfig(
    family="qwen3", vocab_size=16384, hidden=384, ffn=1024, layers=16, heads=6, kv_heads=2, head_dim=64,
    context=1024, rope_theta=10000.0, tied=True, bos=0, eos=(0,),
)  # fmt: skip
WINDOW = 512
WIDTH = 256  # of the narrow draft
OWN_LENGTH = 256  # tokens of a text that the target writes for the drafts
CALIBRATION_FILES, CALIBRATION_BLOCKS = 48, 8
LICENCE = "Weights: Apache-2.0. Training text: the Python standard library, PSF License Agreement."


@dataclass(frozen=True)
class Recipe:
    """How the target is trained. `growth` maps a step to the number of layers in use from then on.

    `exits` are trained in turn, one per step, on `exit_rows` rows: on the text with `exit_weight`, and with `imitation_weight`
    on the model's own final distribution, which is what verification compares them with.
    """

    schedule: Schedule
    growth: tuple[tuple[int, int], ...] = ((0, 6), (450, 10), (700, 16))
    exits: tuple[int, ...] = (2, 4)
    exit_weight: float = 0.3
    imitation_weight: float = 0.0
    exit_rows: int = 512
    layer_dropout: float = 0.1
    sequences: int = 8
    length: int = 256
    seed: int = 0


PHASES = tomllib.loads((SHIPPED / "reference.toml").read_text(encoding="utf-8"))
TARGET: tuple[Recipe, ...] = msgspec.convert(PHASES.pop("target"), tuple[Recipe, ...])
DRAFTS: dict[str, tuple[Design, ...]] = msgspec.convert(PHASES, dict[str, tuple[Design, ...]])


def initialise(model: Transformer, seed: int) -> None:
    """Seeded weights; output projections are zero, so every block starts as the identity."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.02 if "embed" in name else weight.shape[1] ** -0.5 / 1.7, generator=dice)
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                weight.zero_()


def learn_reference(model: Transformer, recipe: Recipe, texts: Texts, step: int) -> float:
    """Gradients of one step: full depth, plus one exit in turn on a share of the rows; returns the loss."""
    ids = texts.draw(step, recipe.sequences, recipe.length).to(model.device)
    labels = ids[:, 1:].reshape(-1)
    early, final = rows_with_dropout(model, recipe, ids[:, :-1], step)
    some = torch.from_numpy(np.random.default_rng((recipe.seed, step, 1)).permutation(len(labels))[: recipe.exit_rows])
    loss = cross_entropy(model, final, labels)
    loss = loss + recipe.exit_weight * cross_entropy(model, early[some], labels[some])
    if recipe.imitation_weight:
        loss = loss + recipe.imitation_weight * disagreement(model, early[some], final[some])
    loss.backward()
    return loss.item()


def rows_with_dropout(model: Transformer, recipe: Recipe, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Rows [n, hidden] at the step's exit and at full depth, with layers dropped at random.

    A layer's chance to be dropped grows with depth from 0 to `layer_dropout` (LayerSkip, section 3.1).
    """
    exit_layer, depth = recipe.exits[step % len(recipe.exits)], [layers for first, layers in recipe.growth if first <= step][-1]
    dice = np.random.default_rng((recipe.seed, step, 2)).random(depth)
    kept = dice >= recipe.layer_dropout * (2.0 ** (np.arange(depth) / max(1, depth - 1)) - 1)
    x = early = model.embed(ids)
    for number, layer in enumerate(model.blocks[:depth], start=1):
        x = layer(x, model.rope) if kept[number - 1] else x
        early = x if number == exit_layer else early
    return early.flatten(0, 1), x.flatten(0, 1)


def exit_scores(model: Transformer, held_out: np.ndarray, depths: tuple[int, ...], windows: int = 8) -> dict[str, float]:
    """Held-out loss at each depth and the acceptance of each exit by the deepest, as `overlap` finds them."""

    def scored(ids: Tensor) -> dict[str, Tensor]:
        return {f"_{depth}": F.linear(model.norm(r), model.head_weight) for depth, r in rows_at(model, ids, depths).items()}

    return overlap(held_out, windows, WINDOW, scored)


def finished(model: Transformer, folder: Path, work: Path, dtype: str) -> None:
    """Write a model's folder, with the corpus's tokenizer."""
    with fresh_folder(folder) as part:
        model.save(part, dtype)
        corpus.write_tokenizer(part, work / "data" / "tokenizer.json")


def build_target(work: Path) -> Path:
    """Train the target through its phases, each from the end of the one before, and write it as a dense float32 folder."""
    folder, branch, model = work / "dense", None, Transformer(REFERENCE)
    if (folder / "config.json").exists():
        return folder
    stream, held = (np.load(work / "data" / name) for name in ("train.npy", "held_out.npy"))
    for number, recipe in enumerate(TARGET):
        initialise(model, recipe.seed)
        run = Run(model, recipe.schedule, work / f"target-{number}")
        learn = partial(learn_reference, model, recipe, Texts(recipe.seed, stream))
        run.train(learn, partial(exit_scores, model, held, (*recipe.exits, model.config.layers)), branch)
        branch = run.checkpoint
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
        folder, recipe = work / "models" / name, [asdict(phase) for phase in cast(Any, phases)]
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

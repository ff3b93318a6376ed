"""The reference models from scratch: corpus, target, 4-bit target, drafts distilled on it, and the folders that ship.

Every step is resumable and skipped where its result exists; weights that ship are written once and then frozen.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.recall import agreement, calibrate_always
from flashspec.models.transformer import Transformer
from flashspec.models.writing import fresh_folder, write_json, write_text
from flashspec.train import corpus
from flashspec.train.distill import Distillation, acceptance, distill
from flashspec.train.package import write_digests, write_tokenizer
from flashspec.train.prompts import choose
from flashspec.train.quantize import quantize_awq
from flashspec.train.target import REFERENCE, WINDOW, Recipe, exit_scores, train_target
from flashspec.train.trainer import Schedule

GROWTH = ((0, 6), (850, 16))
TARGET_PHASES = (
    Recipe(Schedule(800, 0), growth=GROWTH),
    Recipe(Schedule(1300, 450), growth=GROWTH, sequences=4, length=512),
    Recipe(
        Schedule(2400, 1100, muon_lr=0.015, adam_lr=2e-3, handover=1700), growth=GROWTH, sequences=4, length=512,
        exits=(2, 2, 4), exit_weight=0.15, imitation_weight=0.3,
    ),
    Recipe(
        Schedule(2300, 943, muon_lr=0.015, adam_lr=2e-3, handover=1900), growth=GROWTH, sequences=4, length=512,
        exits=(2, 2, 2, 4), exit_weight=0.1, imitation_weight=1.0, exit_rows=1024,
    ),
    Recipe(
        Schedule(2250, 825, muon_lr=0.015, adam_lr=2e-3, handover=2000), growth=GROWTH, sequences=4, length=512,
        exits=(2, 2, 2, 2, 2, 4), exit_weight=0.1, imitation_weight=2.0, exit_rows=1024,
    ),
    Recipe(
        Schedule(2260, 858, muon_lr=0.015, adam_lr=2e-3), growth=GROWTH, sequences=4, length=512,
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
CLUSTER_SIZE, SCORED = 16, 0.2
LICENCE = "Weights: Apache-2.0. Prompts and training text: the Python standard library, PSF License Agreement."


@dataclass(frozen=True)
class Workshop:
    """Folders of one run: work in progress, and the finished models."""

    work: Path

    @property
    def data(self) -> Path:
        return self.work / "data"

    @property
    def models(self) -> Path:
        return self.work / "models"

    def prepare(self) -> corpus.CorpusCard:
        """Tokenizer and id streams of this interpreter's standard library."""
        return corpus.prepare(self.data, REFERENCE.vocab_size)


def build_target(shop: Workshop) -> Path:
    """Train the target through its phases and write it as a dense float32 folder."""
    folder, branch = shop.work / "dense", None
    if (folder / "config.json").exists():
        return folder
    for number, recipe in enumerate(TARGET_PHASES):
        run = shop.work / f"target-{number}"
        model = train_target(shop.data, run, recipe, branch)
        branch = run / "checkpoint.pt"
    with fresh_folder(folder) as part:
        model.save(part, dtype="float32")
        write_tokenizer(part, shop.data / "tokenizer.json")
    return folder


def quantise_target(shop: Workshop, dense: Path) -> Path:
    """The target as a 4-bit AWQ folder, calibrated on training files."""
    folder = shop.models / "target"
    if not (folder / "config.json").exists():
        files = corpus.split(corpus.library_root())[0]
        chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:CALIBRATION_FILES]]
        quantize_awq(dense, folder, list(corpus.texts(chosen)), blocks=CALIBRATION_BLOCKS)
    return folder


def build_draft(shop: Workshop, name: str) -> Path:
    """Distil one draft on the quantised target and write it as a bfloat16 folder."""
    folder = shop.models / name
    if not (folder / "config.json").exists():
        target = Transformer.load(shop.models / "target", dtype="float32", weights="dense")
        draft: Transformer | None = None
        for number, recipe in enumerate(DRAFTS[name]):
            draft = distill(target, shop.data, shop.work / f"{name}-{number}", recipe, draft)
        assert draft is not None
        with fresh_folder(folder) as part:
            draft.save(part, dtype="bfloat16")
            write_tokenizer(part, shop.data / "tokenizer.json")
    return folder


@torch.no_grad()
def hidden_rows(model: Transformer, stream: np.ndarray, windows: int) -> Tensor:
    """A model's rows [n, hidden] before its final norm, over evenly spaced windows of a stream that fit its context."""
    length = min(WINDOW, model.config.context)
    starts = np.linspace(0, len(stream) - length - 1, windows).astype(int)
    ids = torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype(np.int64))
    return model.float().rows(ids).flatten(0, 1)


def add_flash_head(folder: Path, stream: np.ndarray, windows: int = 16) -> None:
    """Cluster a draft's head and put it into the draft's folder, with its default probes.

    The tokens it misses most often there on every second row of a stream of training text are always scored.
    """
    model, rows = _with_rows(folder, stream, windows)
    head = FlashHead.build(model.head_weight, model.norm, cluster_size=CLUSTER_SIZE)
    always = calibrate_always(head, DenseHead(model.norm, model.head_weight), rows[::2])
    head.with_always(always).save(folder)


def head_scores(folder: Path, held: np.ndarray, windows: int = 24) -> list[dict[str, Any]]:
    """Top-1 agreement with the dense head on held-out text: as shipped, with half the probes, and with SCORED of the rows."""
    model, rows = _with_rows(folder, held, windows)
    dense = DenseHead(model.norm, model.head_weight)
    shipped = FlashHead.load(folder, model.head_weight, model.norm)
    spare = int(SCORED * shipped.vocab_size) - (shipped.rows_scored - shipped.probes * CLUSTER_SIZE)
    probes = {
        "as shipped": shipped.probes,
        "half the probes": shipped.probes // 2,
        f"{SCORED:g} of the rows": spare // CLUSTER_SIZE,
    }
    heads = {plan: shipped.with_probes(max(1, count)) for plan, count in probes.items()}
    return [_about(plan, head, agreement(head, dense, rows)) for plan, head in heads.items()]


def _about(plan: str, head: FlashHead, same: float) -> dict[str, Any]:
    share = round(head.rows_scored / head.vocab_size, 4)
    return {"plan": plan, "probes": head.probes, "scored_share": share, "agreement": round(same, 4)}


def _with_rows(folder: Path, stream: np.ndarray, windows: int) -> tuple[Transformer, Tensor]:
    """A draft as it ships, and the rows that its float32 twin computes."""
    rows = hidden_rows(Transformer.load(folder, dtype="float32"), stream, windows)
    return Transformer.load(folder), rows


@torch.no_grad()
def scores(shop: Workshop, dense: Path | None, windows: int = 48) -> dict[str, Any]:
    """Held-out quality of target, exits, drafts and their FlashHeads, as shipped; with the dense folder, what AWQ cost."""
    held = np.load(shop.data / "held_out.npy")
    target = Transformer.load(shop.models / "target", dtype="float32", weights="dense")
    top = target.config.layers
    found: dict[str, Any] = {"target": exit_scores(target, held, (2, 4, top), windows)}
    if dense is not None:
        before = exit_scores(Transformer.load(dense), held, (top,), windows)[f"loss_{top}"]
        found["awq_perplexity_ratio"] = float(np.exp(found["target"][f"loss_{top}"] - before))
    for name in DRAFTS:
        draft = Transformer.load(shop.models / name, dtype="float32")
        found[name] = {**acceptance(target, draft, held, windows), "flash_head": head_scores(shop.models / name, held)}
    return found


def _model_card(name: str, about: dict[str, Any]) -> str:
    lines = [f"# flashspec reference model: {name}", "", LICENCE, "", "```json", json.dumps(about, indent=2), "```", ""]
    return "\n".join(lines)


def _recipe(name: str) -> Any:
    return [asdict(phase) for phase in (TARGET_PHASES if name == "target" else DRAFTS[name])]


def finish(shop: Workshop, card: corpus.CorpusCard, found: dict[str, Any]) -> None:
    """Model cards, curves, prompts and digests; after this a folder is complete."""
    for name in ("target", *DRAFTS):
        folder = shop.models / name
        own = found[name] | ({"awq_perplexity_ratio": found.get("awq_perplexity_ratio")} if name == "target" else {})
        about = {"made": date.today().isoformat(), "held_out": own, "corpus": asdict(card), "recipe": _recipe(name)}
        write_text(_model_card(name, about), folder / "README.md")
        curves = sorted(shop.work.glob(f"{name}*/curve.jsonl"))
        write_text("".join(c.read_text() for c in curves), folder / "curve.jsonl")
        write_digests(folder)
    _write_prompts(shop)


def _write_prompts(shop: Workshop) -> None:
    from tokenizers import Tokenizer

    root = corpus.library_root()
    prompts = choose(corpus.split(root)[1], root, Tokenizer.from_file(str(shop.data / "tokenizer.json")))
    write_json({"licence": LICENCE, "prompts": prompts}, shop.models / "prompts.json")


def make(work: Path) -> Path:
    """Everything, from the corpus to finished folders in work/models; hours on two cores, resumable at any point."""
    shop = Workshop(work)
    card = shop.prepare()
    dense = build_target(shop)
    quantise_target(shop, dense)
    for name in DRAFTS:
        build_draft(shop, name)
        add_flash_head(shop.models / name, np.load(shop.data / "train.npy"))
    finish(shop, card, scores(shop, dense))
    return shop.models

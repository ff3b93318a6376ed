"""A draft by design: cut out of the target, then distilled on what it writes (Yan et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashspec.decoding.models import Models
from flashspec.models.config import ModelConfig
from flashspec.models.export import write_speech
from flashspec.models.family import Design
from flashspec.models.folder import read_as
from flashspec.models.transformer import Transformer
from flashspec.models.writing import carry, fresh_folder, refuse_input, refuse_taken, write_digests, write_json
from flashspec.provenance import model_digests
from flashspec.train.distill import DraftLoss, acceptance, scheduled
from flashspec.train.prune import Choice, choose, importance, prune
from flashspec.train.texts import Texts, windows, write
from flashspec.train.trainer import Run, computing, cross_entropy

CALIBRATION, HELD_OUT = 16, 0.1


class Place(NamedTuple):
    """Where a draft is made, where it is finished, and where designs of one target share its texts."""

    work: Path
    out: Path
    shared: Path | None = None


def check_fit(stream: np.ndarray, target: ModelConfig, design: Design) -> None:
    """Refuse a form that is no part of the target, too short a text, and texts longer than the context."""
    design.of(target)
    if design.length + bool(design.written) > target.context:
        raise ValueError(f"texts of {design.length} tokens do not fit the target's context of {target.context}; shorten length")
    needed = int((design.length + 2) / HELD_OUT) + 1
    if len(stream) < needed:
        raise ValueError(f"the text has {len(stream)} tokens and a design with length {design.length} needs {needed}; give more")


def design_draft(
    target: Transformer, stream: np.ndarray, folder: Path, design: Design, shared: Path | None = None
) -> Transformer:
    """Prune a dense float32 target on a stream of ids, then train; run again in the same folder, it continues.

    The last tenth of the stream is held out. Designs of one target, seed and batch may keep its texts and rows in one
    `shared` folder. Raises ValueError for a folder of another design.
    """
    check_fit(stream, target.config, design)
    _claim(folder, facts_of(target.config, design))
    train, held = np.split(stream, [int(len(stream) * (1 - HELD_OUT))])
    draft = prune(target, _choice(target, train, folder, design))
    run = Run(draft, scheduled(design), folder)
    run.resume()
    if run.step < design.steps:
        place = shared or folder
        own = write(target, train, place / "texts", design) if design.written else None
        texts = Texts(design.seed, None if design.written else train, own)
        learn: Callable[[int], float] = partial(learn_text, draft, texts, design)
        if design.distilled:
            learn = DraftLoss(draft, target, texts, place / "teacher", design)
        run.train(learn, lambda: acceptance(target, draft, held, 4, design.length))
    return draft.eval().requires_grad_(False)


def facts_of(target: ModelConfig, design: Design) -> dict[str, Any]:
    """What tells one draft from another, as JSON has it: its design and the shape of its target."""
    return json.loads(json.dumps({"design": asdict(design), "target": asdict(target)}))


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Make the folder this design's; refuse one that holds another."""
    path = folder / "design.json"
    if path.exists() and read_as(path, dict) != facts:
        raise ValueError(f"{folder.name} holds another design; give --work another folder, or remove that one")
    refuse_taken(folder, "design.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(facts, path)


def _choice(target: Transformer, stream: np.ndarray, folder: Path, design: Design) -> Choice:
    """What stays, chosen once and kept beside the run."""
    path = folder / "choice.json"
    if not path.exists():
        found = importance(target, windows(stream, CALIBRATION, design.length))
        write_json(choose(found, target.config, design.of(target.config))._asdict(), path)
    return Choice(**read_as(path, dict))


def learn_text(draft: Transformer, texts: Texts, design: Design, step: int) -> float:
    """Gradients of one step on texts alone, without the target's distributions; the loss."""
    ids = texts.draw(step, design.sequences, design.length)
    with computing(design.dtype):
        loss = cross_entropy(draft, draft.rows(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))
    loss.backward()
    return loss.item()


def make_draft(models: Models, stream: np.ndarray, place: Place, design: Design, about: dict[str, Any]) -> Path:
    """The finished folder of a draft, `about` its speculative.json if any; the same one is left alone.

    Raises what `design_draft` and `fresh_folder` raise; then nothing is made.
    """
    source, wanted = models.folders["target"], {"design.json": facts_of(models.target.config, design)}
    wanted |= {"speculative.json": about} if about else {}
    if {name: read_as(place.out / name, dict) for name in wanted if (place.out / name).is_file()} == wanted:
        return place.out
    refuse_input(place.work, [source])
    with fresh_folder(place.out, [source, place.work]) as part:
        draft = design_draft(models.target, stream, place.work, design, place.shared)
        package(draft, models, place.work, part)
        if about:
            write_json(about, part / "speculative.json")
        write_digests(part)
    return place.out


def package(draft: Transformer, models: Models, work: Path, out: Path) -> None:
    """A draft as a Hugging Face folder with its target's tokenizer, its design, curve and model card."""
    source = models.folders["target"]
    draft.save(out)
    write_speech(source, models.tokenizer, out)
    carry(work, out, ("curve.jsonl", "choice.json", "design.json"))
    config, about = draft.config, read_as(out / "design.json", dict) | {"target_files": model_digests(source)}
    facts = f"{config.layers} layers, {config.body_parameters:,} parameters in layers, width {config.hidden}"
    lines = ["# A draft made by flashspec", "", f"Pruned from {source.name} and trained as this says: {facts}.", ""]
    card = [*lines, "```json", json.dumps(about, indent=2), "```", ""]
    (out / "README.md").write_text("\n".join(card), encoding="utf-8")


def speculative(out: Path, k: int) -> dict[str, Any]:
    """What vLLM's --speculative-config takes."""
    return {"method": "draft_model", "model": str(out), "num_speculative_tokens": k}


def encoded(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """Texts as one stream of ids; ValueError where there is no tokenizer."""
    if tokenizer is None:
        raise ValueError("the target's folder has no tokenizer.json; a draft is designed on text, so add it")
    return np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in tokenizer.encode_batch(list(texts))])

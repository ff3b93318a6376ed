"""A draft by design: cut out of the target, then distilled on what it writes (Yan et al. 2024).

What is cut is what matters least on a text: layers count by how far they turn the residual stream (Gromov et al. 2024), heads by
the norm of what they add to it, channels by their activation's norm times their down-projection's (after Wanda, Sun et al. 2023).
The width is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashspec.decoding.models import Models
from flashspec.models.config import ModelConfig
from flashspec.models.export import write_speech
from flashspec.models.family import Design
from flashspec.models.folder import read_as
from flashspec.models.transformer import Transformer
from flashspec.models.writing import carry, fresh_folder, refuse_input, write_digests, write_json, write_text
from flashspec.provenance import model_digests
from flashspec.train.texts import Texts, kept, overlap, windows, written
from flashspec.train.trainer import Run, Schedule, chances, chunked, claim, computing, cross_entropy, divergence

CALIBRATION, HELD_OUT = 16, 0.1  # windows that the importance is measured on; the share of a text that is held out


class Importance(NamedTuple):
    """What matters on a text: angles of the layers [L] in half turns, mean norms of what heads add [L, H], channels [L, F]."""

    layers: Tensor
    heads: Tensor
    channels: Tensor


class Choice(NamedTuple):
    """What is kept: layers, and for each its key/value heads, query heads and channels."""

    layers: list[int]
    groups: list[list[int]]
    heads: list[list[int]]
    channels: list[list[int]]


@torch.no_grad()
def importance(model: Transformer, ids: Tensor) -> Importance:
    """Importance on ids [n, length]; the model is not changed.

    Raises ValueError for a model whose matrices are packed.
    """
    if any(not isinstance(m, nn.Linear) for layer in model.blocks for m in (layer.attention.out, layer.mlp.down)):
        raise ValueError("this model's matrices are packed in 4 bits; load it with weights='dense' to prune it")
    found, seen = [], dict[nn.Module, Tensor]()

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module] = inputs[0].flatten(0, -2)

    x = model.place(model.embed(ids), 0)
    for layer in model.blocks:
        out, down = layer.attention.out, layer.mlp.down
        with out.register_forward_pre_hook(see), down.register_forward_pre_hook(see):
            y = layer(x, model.rope)
        channels = seen[down].square().mean(0).sqrt() * down.weight.norm(dim=0)
        cosine = torch.cosine_similarity(x.float(), y.float(), dim=-1).clamp(-1.0, 1.0)
        heads = (part.chunk(model.config.heads, dim=1) for part in (seen[out], out.weight))
        norms = [(rows @ weight.T).norm(dim=-1).mean() for rows, weight in zip(*heads, strict=True)]
        found.append((cosine.arccos().mean() / math.pi, torch.stack(norms), channels))
        x = y
    return Importance(*(torch.stack(column) for column in zip(*found, strict=True)))


def choose(found: Importance, target: ModelConfig, wanted: ModelConfig) -> Choice:
    """What to keep of a target's shape for the wanted one: what matters most, in the old order."""
    layers = _top(found.layers, wanted.layers)
    share, groups, heads = wanted.heads // wanted.kv_heads, [], []
    for layer in layers:
        scores = found.heads[layer].view(target.kv_heads, -1)
        kept = _top(scores.topk(share).values.sum(-1), wanted.kv_heads)
        groups.append(kept)
        heads.append([group * scores.shape[1] + head for group in kept for head in _top(scores[group], share)])
    return Choice(layers, groups, heads, [_top(found.channels[layer], wanted.ffn) for layer in layers])


def _top(scores: Tensor, count: int) -> list[int]:
    """Numbers of the highest scores, in rising order."""
    return sorted(scores.topk(count).indices.tolist())


@torch.no_grad()
def prune(model: Transformer, choice: Choice) -> Transformer:
    """A new float32 model with only what was chosen; the old one is not changed."""
    heads, kv_heads, ffn = (len(kept[0]) for kept in (choice.heads, choice.groups, choice.channels))
    draft = Transformer(replace(model.config, layers=len(choice.layers), heads=heads, kv_heads=kv_heads, ffn=ffn))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("layers.")}
    for number, layer in enumerate(choice.layers):
        rows, columns = _cuts(model.config, choice, number)
        for name, value in model.blocks[layer].state_dict().items():
            module, _, leaf = name.rpartition(".")
            value = value[rows[module]] if module in rows else value
            kept[f"layers.{number}.{name}"] = value[:, columns[module]] if module in columns and leaf == "weight" else value
    draft.load_state_dict(kept)
    return draft


def _cuts(config: ModelConfig, choice: Choice, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows of one layer's fused matrices that are kept, and their biases, and the columns of those that follow them."""
    query, key, _ = config.qkv_rows
    width = torch.arange(config.head_dim)
    heads, groups = (
        (torch.tensor(ids[number])[:, None] * config.head_dim + width).flatten() for ids in (choice.heads, choice.groups)
    )
    channels = torch.tensor(choice.channels[number])
    up = torch.cat([channels, config.ffn + channels]) if not config.opt else channels
    rows = {"attention.qkv": torch.cat([heads, query + groups, query + key + groups]), "mlp.up": up}
    return rows, {"attention.out": heads, "mlp.down": channels}


class Place(NamedTuple):
    """Where a draft is made and finished, and where designs of one target share its texts."""

    work: Path
    out: Path
    shared: Path | None = None


def check_fit(stream: np.ndarray, target: ModelConfig, design: Design) -> None:
    """Refuse a form that is not part of the target, a text that is too short, and texts longer than the context."""
    design.of(target)
    if design.length + bool(design.written) > target.context:
        raise ValueError(f"texts of {design.length} tokens do not fit the target's context of {target.context}; shorten length")
    needed = int((design.length + 2) / HELD_OUT) + 1
    if len(stream) < needed:
        raise ValueError(f"the text has {len(stream)} tokens and a design with length {design.length} needs {needed}; give more")


def design_draft(
    target: Transformer, stream: np.ndarray, place: Place, design: Design, files: Mapping[str, str] | None = None
) -> Transformer:
    """Prune a dense float32 target on a stream of ids, then train; a second run in the same folder continues the first.

    The last tenth of the stream is held out. Designs of one target, seed and batch may keep its texts and rows in one shared
    folder. `files` are digests of the target's. Raises ValueError for a folder of another design or target.
    """
    check_fit(stream, target.config, design)
    folder = place.work
    claim(folder / "design.json", facts_of(target.config, design, files))
    if place.shared:
        claim(place.shared / "target.json", {"target_files": files})
    train, held = np.split(stream, [int(len(stream) * (1 - HELD_OUT))])
    draft, kept_in = prune(target, _choice(target, train, folder, design)), place.shared or folder
    own = written(target, train, kept_in / "texts", design) if design.written and design.steps else None
    texts = Texts(design.seed, None if design.written else train, own, held, kept_in / "teacher")
    distill(draft, target, texts, folder, design)
    return draft.eval().requires_grad_(False)


def distill(draft: Transformer, target: Transformer, texts: Texts, folder: Path, design: Design) -> None:
    """Train a draft of a float32 target, or continue in `folder`."""
    rates = {name: getattr(design, name) for name in ("warmup", "muon_lr", "adam_lr", "save_every")}
    run = Run(draft, Schedule(design.steps, min(design.decay, design.steps), **rates), folder)
    learn = partial(learn_target, draft, target) if design.distilled else partial(learn_text, draft)
    run.train(partial(learn, texts, design), lambda: acceptance(target, draft, texts.held, design.length))


def facts_of(target: ModelConfig, design: Design, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What distinguishes drafts, as JSON: the design, and the shape and the files of the target."""
    return json.loads(json.dumps({"design": asdict(design), "target": asdict(target), "target_files": files}))


def _choice(target: Transformer, stream: np.ndarray, folder: Path, design: Design) -> Choice:
    """What is kept of the target, chosen once and stored with the run."""
    path = folder / "choice.json"
    if not path.exists():
        found = importance(target, windows(stream, CALIBRATION, design.length))
        write_json(choose(found, target.config, design.of(target.config))._asdict(), path)
    return Choice(**read_as(path, dict))


def learn_text(draft: Transformer, texts: Texts, design: Design, step: int) -> float:
    """Gradients of one step on texts alone, without the target's distributions; returns the loss."""
    ids = texts.draw(step, design.sequences, design.length)
    with computing(design.dtype):
        loss = cross_entropy(draft, draft.rows(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))
    loss.backward()
    return loss.item()


def learn_target(draft: Transformer, target: Transformer, texts: Texts, design: Design, step: int) -> float:
    """Gradients of one step towards the target's distributions, one chunk of them in memory at a time; returns the loss.

    The target's rows [n, hidden] before the final norm are computed once and kept, in half precision.
    """

    @torch.no_grad()
    def rows() -> Tensor:
        return target.rows(ids).flatten(0, 1).half()

    def loss(mine: Tensor, part: slice) -> Tensor:
        logits = F.linear(draft.norm(mine), draft.head_weight)
        return divergence(chances(target, theirs[part]), logits, design.variation) / len(theirs)

    ids = texts.draw(step, design.sequences, design.length)[:, :-1]
    with computing(design.dtype):
        theirs = kept(texts.rows / f"{design.seed}-{step}.safetensors", rows).float()
        return chunked(draft.rows(ids).flatten(0, 1), loss)


def acceptance(target: Transformer, draft: Transformer, held_out: np.ndarray, length: int, windows: int = 4) -> dict[str, float]:
    """Held-out loss of the draft and its acceptance at T = 1, as `overlap` finds them."""
    found = overlap(held_out, windows, length, lambda ids: {"": draft(ids)[0], " of the target": target(ids)[0]})
    return {name: found[name] for name in ("loss", "accept")}


def make_draft(models: Models, stream: np.ndarray, place: Place, design: Design, k: int) -> Path:
    """The finished folder of a draft, with vLLM's --speculative-config; an existing one of the same design is kept.

    Raises what `design_draft` and `fresh_folder` raise; then nothing is made.
    """
    source = models.folders["target"]
    files = model_digests(source)
    facts = facts_of(models.target.config, design, files)
    about = {"method": "draft_model", "model": str(place.out), "num_speculative_tokens": k}
    wanted = {"design.json": facts, "speculative.json": about}
    if {name: read_as(place.out / name, dict) for name in wanted if (place.out / name).is_file()} == wanted:
        return place.out
    refuse_input(place.work, [source])
    with fresh_folder(place.out, [source, place.work]) as part:
        draft = design_draft(models.target, stream, place, design, files)
        draft.save(part)
        write_speech(source, models.tokenizer, part)
        carry(place.work, part, ("curve.jsonl", "choice.json", "design.json"))
        write_json(about, part / "speculative.json")
        size = f"{draft.config.layers} layers, {draft.config.body_parameters:,} parameters in layers, width {draft.config.hidden}"
        said = f"Pruned from {source.name} and trained as this says: {size}."
        write_card(part, "A draft made by flashspec", said, facts)
        write_digests(part)
    return place.out


def write_card(folder: Path, title: str, said: str, about: dict[str, Any]) -> None:
    """Write a model card."""
    lines = [f"# {title}", "", said, "", "```json", json.dumps(about, indent=2), "```", ""]
    write_text("\n".join(lines), folder / "README.md")

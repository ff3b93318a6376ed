"""Exit adapters on a frozen model: minutes of training that make its lower layers say what its top would.

The model stays as it is; `load` finds the adapters in one file of a copy of its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flashspec.decoding.models import load
from flashspec.models.exits import EXITS_FILE, ExitAdapter, check_layers, rows_at, save_exits
from flashspec.models.files import Count, shaped
from flashspec.models.folder import GGUF, located, read_config
from flashspec.models.gguf_checkpoint import GgufCheckpoint
from flashspec.models.transformer import Transformer
from flashspec.models.writing import copy_checkpoint, fresh_folder, sign
from flashspec.train import corpus
from flashspec.train.texts import Texts
from flashspec.train.trainer import divergence

ROWS = 256


@dataclass(frozen=True)
class ExitRecipe:
    """How adapters are trained: layers, rank, and steps of `sequences` windows of `length` tokens."""

    layers: tuple[int, ...]
    rank: int = 64
    steps: int = 150
    sequences: int = 2
    length: int = 256
    rate: float = 2e-3
    seed: int = 0


class Depth(Struct):
    """What a config.json says of any model's depth."""

    num_hidden_layers: Count


def default_layers(folder: Path) -> tuple[int, ...]:
    """HiSpec's exits for a checkpoint: an eighth and a quarter of the depth (Kumar et al. 2025)."""
    if folder.suffix == GGUF:
        depth = GgufCheckpoint(folder, "auto", "auto").config.layers
    else:
        depth = shaped(read_config(folder), Depth, folder / "config.json", "name the exits with --exits").num_hidden_layers
    if depth < 3:
        raise ValueError(f"a model of {depth} layers has no room for two exits; name one with --exits")
    first = max(1, depth // 8)
    return first, max(first + 1, depth // 4)


def check_ours(model: Transformer) -> Transformer:
    """The model; ValueError where only transformers computes it."""
    if not isinstance(model, Transformer):
        raise ValueError("training needs an architecture that flashspec computes itself; this one runs on transformers")
    return model


def check_exits(model: Transformer, layers: tuple[int, ...]) -> Transformer:
    """The model; ValueError where exits behind these layers cannot be trained on it."""
    if not check_layers(layers):
        raise ValueError("name at least one layer to end in an exit")
    if layers[-1] >= check_ours(model).config.layers:
        raise ValueError(f"exits must lie below the model's {model.config.layers} layers, got {layers}")
    return model


def train_adapters(model: Transformer, stream: np.ndarray, recipe: ExitRecipe) -> dict[int, ExitAdapter]:
    """Adapters by layer, trained on the model's own distribution; ValueError for exits outside the model."""
    depth = check_exits(model, recipe.layers).config.layers
    torch.manual_seed(recipe.seed)
    adapters = {layer: ExitAdapter(model, recipe.rank) for layer in recipe.layers}
    weights = [weight for adapter in adapters.values() for weight in adapter.parameters()]
    optimizer, texts = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.0), Texts(recipe.seed, stream)
    for step in tqdm(range(recipe.steps), desc="exits", delay=2, leave=False):
        optimizer.param_groups[0]["lr"] = recipe.rate * (1.0 - step / recipe.steps)
        ids = texts.draw(step, recipe.sequences, recipe.length)[:, :-1]
        _descend(model, adapters, rows_at(model, ids, (*recipe.layers, depth)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {layer: adapter.eval().requires_grad_(False) for layer, adapter in adapters.items()}


def _descend(model: Transformer, adapters: dict[int, ExitAdapter], rows: dict[int, Tensor]) -> None:
    """Gradients of KL and total variation from the model's last distribution, in chunks."""
    final, weight = rows.pop(model.config.layers), model.head_weight.detach().float()
    with torch.enable_grad():
        for start in range(0, len(final), ROWS):
            part = slice(start, start + ROWS)
            p = F.linear(model.norm(final[part]).float(), weight).softmax(-1)
            for layer, adapter in adapters.items():
                logits = F.linear(adapter(rows[layer][part]).float(), weight)
                (divergence(p.detach(), logits, 1.0) / len(final)).backward()


@torch.no_grad()
def exit_agreement(model: Transformer, adapters: dict[int, ExitAdapter], ids: Tensor) -> dict[int, float]:
    """Share of the positions of ids [batch, length] at which each exit's best token is the whole model's."""
    rows = rows_at(model, ids, (*adapters, model.config.layers))
    weight = model.head_weight.float()
    final = F.linear(model.norm(rows[model.config.layers]).float(), weight).argmax(-1)
    return {n: (F.linear(a(rows[n]).float(), weight).argmax(-1) == final).float().mean().item() for n, a in adapters.items()}


def train_exits(folder: Path, out: Path, recipe: ExitRecipe, text: Path | None = None) -> dict[int, tuple[float, float]]:
    """Train exits on a text, or the standard library, and write `out`, a copy of the folder with them.

    The last twentieth of the tokens gives each layer's agreement before and after. Raises FileNotFoundError without a
    folder or tokenizer, ValueError for exits outside the model or a short text, FileExistsError where `out` has files.
    """
    source = located(folder)
    with fresh_folder(out, [source]) as part:
        models = load(source, None, dtype="float32", weights="dense")
        model = check_exits(models.target, recipe.layers)
        stream = tokens_of(models.tokenizer, text, recipe)
        train, held = np.split(stream, [-max(recipe.length + 2, len(stream) // 20)])
        ids = torch.from_numpy(held[: recipe.length])[None]
        adapters = train_adapters(model, train, recipe)
        untrained = {layer: ExitAdapter(model, recipe.rank) for layer in recipe.layers}
        copy_checkpoint(source, part)
        save_exits(adapters, part / EXITS_FILE)
        sign(part, EXITS_FILE)
    before, after = (exit_agreement(model, each, ids) for each in (untrained, adapters))
    return {layer: (before[layer], after[layer]) for layer in recipe.layers}


def tokens_of(tokenizer: Any, text: Path | None, recipe: ExitRecipe) -> np.ndarray:
    """Token ids of a text file, or of the standard library until there are enough for every step."""
    if tokenizer is None:
        raise FileNotFoundError("this checkpoint has no tokenizer.json; exits are trained on text, so put one beside the weights")
    wanted, ids = 2 * recipe.steps * recipe.sequences * recipe.length, list[int]()
    for piece in [corpus.read(text)] if text else corpus.library(recipe.seed):
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if len(ids) >= wanted and text is None:
            break
    if len(ids) < 4 * recipe.length:
        raise ValueError(f"the text has {len(ids)} tokens; give at least {4 * recipe.length}, four windows")
    return np.asarray(ids, dtype=np.int64)

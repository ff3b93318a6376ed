"""Exits of a frozen model: what is trained between the rows of a layer and the shared vocabulary head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashspec.models.folder import GGUF, read_tensors
from flashspec.models.packed import PackedLinear, rounded
from flashspec.models.transformer import Layer, RMSNorm, Transformer, norm_of
from flashspec.models.writing import write_tensors

EXITS_FILE = "exits.safetensors"


def check_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The layers of exits; ValueError unless they are rising numbers from 1."""
    if list(layers) != sorted(set(layers)) or min(layers, default=1) < 1:
        raise ValueError(f"exits must be layer numbers from 1, in rising order, got {layers}")
    return layers


class ExitAdapter(nn.Module):
    """Rows of one exit, corrected and normalised: norm(x + up(silu(down(own(x))))).

    `up` starts at zero, so an untrained adapter is the shared final norm (LayerSkip's exit, Elhoushi et al. 2024).
    """

    def __init__(self, model: Transformer, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank of an exit adapter must be at least 1, got {rank}")
        hidden = model.config.hidden
        self.own = RMSNorm(hidden, model.config.norm_eps)
        self.down = nn.Linear(hidden, rank, bias=False)
        self.up = nn.Linear(rank, hidden, bias=False)
        self.final = model.norm.forward
        nn.init.zeros_(self.up.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows [n, hidden] for the shared head, in the adapter's own precision (float32)."""
        wide = rows.to(self.down.weight.dtype)
        return self.final(wide + self.up(F.silu(self.down(self.own(wide)))))


@torch.no_grad()
def rows_at(
    model: Transformer, ids: Tensor, depths: Collection[int], exits: Mapping[int, Exit] | None = None
) -> dict[int, Tensor]:
    """Float32 rows [n, hidden] of a model at each depth, for ids [batch, length]; after the layers of `exits`."""
    found = {}
    for depth, x in enumerate(model.states(ids), start=1):
        last = (exits or {}).get(depth)
        if depth in depths:
            found[depth] = (last.layer(x, model.rope) if isinstance(last, ExitLayer) else x).flatten(0, 1).float()
    return found


class ExitLayer(nn.Module):
    """A layer with its own cache on an exit's rows, and a norm: norm(layer(rows)) (Kangaroo, Liu et al. 2024)."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.layer, self.norm = Layer(model.config), norm_of(model.config.hidden, model.config)
        vars(self)["rope"] = model.rope

    @classmethod
    def like_the_last(cls, model: Transformer) -> ExitLayer:
        """A float32 exit that starts as the last layer and final norm of a model in floating point."""
        found = cls(model)
        found.layer.load_state_dict(model.blocks[-1].state_dict())
        found.norm.load_state_dict(model.norm.state_dict())
        return found

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows [batch, n, hidden] for the shared head, from the rows of complete texts."""
        return self.norm(self.layer(rows, self.rope))

    def fitted(self, model: Transformer) -> ExitLayer:
        """This exit in the model's own dtype: a layer in int8 if the model's are integers."""
        if isinstance(model.blocks[0].attention.out, PackedLinear):
            self.layer = rounded(model.with_layers(nn.ModuleList([self.layer])), "int8").blocks[0]
            return self
        return self.to(model.device, model.embed.weight.dtype)


Exit = ExitAdapter | ExitLayer


def exits_file(source: Path) -> Path:
    """The file with a checkpoint folder's exits, or the one beside a GGUF file with that file's exits."""
    return source.with_suffix(f".{EXITS_FILE}") if source.suffix == GGUF else source / EXITS_FILE


def save_exits(exits: Mapping[int, Exit], path: Path) -> None:
    """Write exits by layer to a safetensors file; layers in bfloat16."""
    tensors = {
        f"{layer}.{name}": value.bfloat16() if isinstance(found, ExitLayer) else value
        for layer, found in exits.items()
        for name, value in found.state_dict().items()
    }
    write_tensors(tensors, path)


def load_exits(path: Path, model: Transformer) -> dict[int, Exit]:
    """Exits by layer; ValueError for a file written for another model."""
    tensors, _ = read_tensors(path, "fetch it again, or train exits anew with flashspec train exits")
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, leaf = name.partition(".")
        by_layer.setdefault(layer, {})[leaf] = value
    exits = {}
    for layer, own in by_layer.items():
        found: Exit | None = None
        if layer in map(str, range(1, model.config.layers)):
            rank = len(own["down.weight"]) if own.get("down.weight", torch.empty(())).ndim else 0
            deep = any(name.startswith("layer.") for name in own)
            found = ExitLayer(model) if deep else ExitAdapter(model, rank) if rank else None
        shapes = {name: value.shape for name, value in own.items() if value.is_floating_point()}
        if found is None or shapes != {name: value.shape for name, value in found.state_dict().items()}:
            raise ValueError(
                f"{path.name} holds an exit of another model (layer {layer!r}); train exits anew with flashspec train exits"
            )
        found.load_state_dict(own)
        found = found.eval().requires_grad_(False)
        exits[int(layer)] = found.fitted(model) if isinstance(found, ExitLayer) else found.to(model.device)
    return dict(sorted(exits.items()))

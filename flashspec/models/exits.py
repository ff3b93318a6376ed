"""Exit adapters: a small learned step between an exit's rows and the shared final norm and head of a frozen model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashspec.models.folder import read_tensors
from flashspec.models.transformer import RMSNorm, Transformer
from flashspec.models.writing import write_tensors

EXITS_FILE = "exits.safetensors"


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
def rows_at(model: Transformer, ids: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
    """Rows [n, hidden] of a model at each depth, in float32, for ids [batch, length]."""
    states = enumerate(model.states(ids), start=1)
    return {depth: x.flatten(0, 1).float() for depth, x in states if depth in depths}


def save_exits(adapters: dict[int, ExitAdapter], path: Path) -> None:
    """Write adapters by layer to a safetensors file."""
    tensors = {f"{layer}.{name}": value for layer, a in adapters.items() for name, value in a.state_dict().items()}
    write_tensors(tensors, path)


def load_exits(path: Path, model: Transformer) -> dict[int, ExitAdapter]:
    """Adapters by layer; ValueError in words for a file that another model's exits were written to."""
    tensors, _ = read_tensors(path, "fetch it again, or train exits anew with flashspec train exits")
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, leaf = name.partition(".")
        by_layer.setdefault(layer, {})[leaf] = value
    adapters = {}
    for layer, own in by_layer.items():
        rank, hidden = (0, *own.get("up.weight", torch.empty(0)).shape)[-1], model.config.hidden
        wanted = {"own.weight": (hidden,), "down.weight": (rank, hidden), "up.weight": (hidden, rank)}
        same = {name: tuple(value.shape) for name, value in own.items() if value.is_floating_point()} == wanted
        if not same or rank < 1 or layer not in map(str, range(1, model.config.layers)):
            raise ValueError(
                f"{path.name} holds an exit of another model (layer {layer!r}); train exits anew with flashspec train exits"
            )
        adapter = ExitAdapter(model, rank).to(model.device)
        adapter.load_state_dict(own)
        adapters[int(layer)] = adapter.eval().requires_grad_(False)
    return dict(sorted(adapters.items()))

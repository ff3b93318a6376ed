"""Matrix products for decoding on CPU: C where a compiler is available, the same values in torch otherwise.

A row of a product never depends on how many rows are computed with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.kernels.build import call, identity, library
from flashspec.kernels.integers import PANEL, Packed, pack, packed_linear
from flashspec.kernels.scoring import NOTHING, WEIGHTS, WIDTH, WRITER, Blocks, Law, Norm, Scoring, Stretch, Writer

# isort: split
from flashspec.kernels.scoring import best_columns, best_numbers, draw, gumbel, judge, matrix, scoring, serves


def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return library() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, K] times weight [N, K] transposed: [n, N] in x's dtype."""
    if not serves(x, weight):
        return F.linear(x, weight.to(x.dtype)) if x.device.type == "cpu" else F.linear(x.to(weight.dtype), weight).to(x.dtype)
    (rows, depth), outputs = x.shape, len(weight)
    out = torch.empty(rows, outputs)
    call("fs_linear", x.contiguous(), rows, weight, WEIGHTS[weight.dtype], outputs, depth, out)
    return out


def gather_linear(x: Tensor, blocks: Tensor | Packed, chosen: Tensor) -> Tensor:
    """x [n, K] against the chosen [n, P] of blocks [C, cap, K]: [n, P, cap]; each block is read in place.

    The blocks of a packed weight are its panels of sixteen rows.
    """
    if isinstance(blocks, Packed):
        picked = [Packed(blocks.cells[row], blocks.kind, len(row) * PANEL, blocks.depth) for row in chosen]
        found = [packed_linear(x[i : i + 1], part) for i, part in enumerate(picked)]
        return torch.cat(found).unflatten(1, (-1, PANEL))
    if not serves(x, blocks):
        return torch.einsum("npck,nk->npc", blocks[chosen].to(x.dtype), x)
    (rows, probes), (_, cap, depth) = chosen.shape, blocks.shape
    out = torch.empty(rows, probes, cap)
    kind = WEIGHTS[blocks.dtype]
    call("fs_gather_linear", x.contiguous(), rows, blocks, kind, cap, depth, chosen.contiguous(), probes, out)
    return out

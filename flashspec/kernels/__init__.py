"""Matrix products for decoding on CPU: C where a compiler is at hand, the same values in torch where not.

A product's row never depends on how many rows are computed with it, and a weight is read once for up to eight rows.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.kernels import best
from flashspec.kernels.build import compiled, identity, library, pointers, whole
from flashspec.kernels.integers import Packed, pack, packed_linear
from flashspec.kernels.scoring import NOTHING, WEIGHTS, WIDTH, Blocks, Matrix, Norm, Scoring, best_numbers, matrix, scoring
from flashspec.kernels.verdicts import best_columns, draw, gumbel, judge
from flashspec.kernels.writing import Law, Span, Stretch, Writer

__all__ = [
    "NOTHING",
    "WEIGHTS",
    "WIDTH",
    "Blocks",
    "Law",
    "Matrix",
    "Norm",
    "Packed",
    "Stretch",
    "Scoring",
    "Span",
    "Writer",
    "available",
    "best_columns",
    "best_numbers",
    "best_of_blocks",
    "draw",
    "gather_linear",
    "gumbel",
    "identity",
    "judge",
    "linear",
    "matrix",
    "normalised",
    "pack",
    "packed_linear",
    "scoring",
    "serves",
]


def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return library() is not None


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled kernels compute x against weight: CPU, float32 rows, width a multiple of 8."""
    right_types = x.dtype is torch.float32 and weight.dtype in WEIGHTS
    return right_types and x.device.type == "cpu" == weight.device.type and weight.shape[-1] % 8 == 0 and available()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, K] times weight [N, K] transposed: [n, N] in x's dtype."""
    if not serves(x, weight) or not weight.is_contiguous():
        return F.linear(x, weight.to(x.dtype)) if x.device.type == "cpu" else F.linear(x.to(weight.dtype), weight).to(x.dtype)
    x = x.contiguous()
    rows, depth = x.shape
    outputs = weight.shape[0]
    out = torch.empty(rows, outputs)
    px, pw, po = pointers(x, weight, out)
    kind, wide = whole(WEIGHTS[weight.dtype]), whole(depth)
    compiled().fs_linear(px, whole(rows), pw, kind, whole(outputs), wide, po)
    return out


def gather_linear(x: Tensor, blocks: Tensor, chosen: Tensor) -> Tensor:
    """x [n, K] against the chosen [n, P] of blocks [C, cap, K]: [n, P, cap]; each block is read where it lies."""
    if not serves(x, blocks) or not blocks.is_contiguous():
        return torch.einsum("npck,nk->npc", blocks[chosen].to(x.dtype), x)
    x, chosen = x.contiguous(), chosen.contiguous()
    (rows, depth), (probes, cap) = x.shape, (chosen.shape[1], blocks.shape[1])
    out = torch.empty(rows, probes, cap)
    px, pw, pc, po = pointers(x, blocks, chosen, out)
    kind = whole(WEIGHTS[blocks.dtype])
    compiled().fs_gather_linear(px, whole(rows), pw, kind, whole(cap), whole(depth), pc, whole(probes), po)
    return out


def best_of_blocks(states: Tensor, blocks: Tensor, ids: Tensor, bias: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Best id [n] and its logit [n] of states [n, K] in the chosen [n, P] of blocks [C, cap, K]; the smallest id wins a tie.

    `ids` and `bias` [C, cap] name a slot's id and what is added to its logit. One fused kernel on CUDA where Triton is
    installed.
    """
    if best.fused(states, blocks):
        from flashspec.kernels.triton_best import best_of_blocks as on_cuda

        return on_cuda(states, blocks, ids, bias, chosen)
    logits = gather_linear(states, blocks, chosen) + bias[chosen]
    return best.reference(logits.flatten(1), ids[chosen].flatten(1))


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """Rows x [n, K] behind a norm over K columns."""
    if not serves(x, norm.weight) or norm.weight.dtype is not torch.float32:
        return _normalised_in_torch(x, norm)
    x = x.contiguous()
    out = torch.empty_like(x)
    px, pw, pb, po = pointers(x, norm.weight, norm.bias, out)
    compiled().fs_norm(px, whole(len(x)), pw, pb, ctypes.c_double(norm.eps), whole(x.shape[1]), po)
    return out


def _normalised_in_torch(x: Tensor, norm: Norm) -> Tensor:
    wide = x.float() if x.dtype is not torch.float64 else x
    if norm.bias is not None:
        return F.layer_norm(wide, wide.shape[-1:], norm.weight.to(wide.dtype), norm.bias.to(wide.dtype), norm.eps).to(x.dtype)
    return norm.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)).to(x.dtype)

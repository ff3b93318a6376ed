"""GGUF's quantised tensors as the integer kernels read them, or widened."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from flashspec.kernels.build import compiled, pointers, whole
from flashspec.kernels.integers import BITS, CELL, PANEL, Packed
from flashspec.kernels.pages import Shelf

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
KIND = {"Q4_0": "u4", "Q4_1": "u4", "Q4_K": "u4", "Q5_0": "s6", "Q6_K": "s6", "Q5_1": "s8", "Q5_K": "s8", "Q8_0": "s8"}


def repacked(raw: np.ndarray, kind: str, depth: int, shelf: Shelf) -> Packed:
    """Rows [N, bytes] of one of the TYPES with their own codes and scales, Q5_1 and Q5_K rounded to eight bits; on the shelf.

    The product of a block's scale and a part's is rounded to half precision, by less than 0.05 %.
    """
    ours, rows = KIND[kind], len(raw)
    raw = np.ascontiguousarray(raw)
    cells = shelf.zeros((-(-rows // PANEL), depth // CELL, CELL * PANEL * BITS[ours] // 8 + 64), torch.uint8)
    compiled().fs_repack(ctypes.c_void_p(raw.ctypes.data), *(whole(n) for n in (TYPES[kind], rows, depth)), *pointers(cells))
    return Packed(cells, ours, rows, depth)


def widened(raw: np.ndarray, kind: str) -> Tensor:
    """Rows [N, bytes] of any of ggml's types in float32, by the gguf library."""
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(np.array(quants.dequantize(raw, GGMLQuantizationType[kind])))

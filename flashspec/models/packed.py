"""Layers on packed weights: the integers that the kernels read instead of parameters, and AWQ's 4-bit checkpoints.

AWQ's GEMM layout is that of Lin et al. (2024), and AutoAWQ's packing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from msgspec import Struct, field
from torch import Tensor, nn

from flashspec.kernels.integers import BITS, CELL, Packed, Shelf, pack, packed, packed_linear
from flashspec.models.config import CONFIG
from flashspec.models.files import Kind, Unsupported, refuse_others, shaped

ROUNDED = {"int8": 8, "int4": 4}
Model = TypeVar("Model", bound=nn.Module)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUPS = (32, 64, 128, 256)
FIXED = {"bits": 4, "version": "gemm", "zero_point": True}  # the only values that we compute


class PackedLinear(nn.Module):
    """A linear layer on one or more packed weights, whose rows follow each other; the bias stays as it is."""

    def __init__(self, packed: Sequence[Packed], bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed: tuple[Packed, ...] = tuple(packed)
        self.bias = bias
        for number, part in enumerate(packed):
            self.register_buffer(f"cells_{number}", part.cells)

    @property
    def weight(self) -> Packed:
        """The packed weight of a layer with one weight."""
        (whole,) = self.packed
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] times the weights [N, K] transposed: [..., N] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.cat([packed_linear(rows, part) for part in self.packed], 1).view(*x.shape[:-1], -1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


class PackedEmbedding(PackedLinear):
    """Embeddings with a packed table, which may also be the vocabulary weight."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., hidden] of ids [...] in float32."""
        return self.weight.rows_of(ids)


def rounded(given: Model, weights: str) -> Model:
    """A transformer with the matrices of all layers in "int8" or "int4"; the rest is the given model's own.

    Matrices that already have fewer bits stay as they are. Raises ValueError for another format, and for a model that is not on
    the CPU.
    """
    model: Any = given
    if weights not in ROUNDED:
        raise ValueError(f"layers can be rounded to int8 or int4, got {weights!r}")
    if model.device.type != "cpu":
        where = f"this model is on {model.device}; name the draft without :{weights}"
        raise ValueError(f"layers are rounded for the CPU kernels, and {where}")
    shared = {id(each): each for each in (*model.layers.parameters(), *model.layers.buffers())}  # not copied
    twin, shelf, bits = model.with_layers(copy.deepcopy(model.layers, shared)), Shelf(), ROUNDED[weights]
    for part in [part for layer in twin.blocks for part in (layer.attention, layer.mlp)]:
        for name, child in part.named_children():
            if isinstance(child, nn.Linear | PackedLinear):
                found = child.packed if isinstance(child, PackedLinear) else [pack(child.weight, bits, shelf)]
                found = [each if BITS[each.kind] <= bits else pack(each.dequantised(), bits, shelf) for each in found]
                setattr(part, name, PackedLinear(found, None if child.bias is None else child.bias.detach()))
    return cast(Model, twin)


class Scheme(Struct, frozen=True):
    """The scheme of a quantization_config, key for key as in Qwen3-32B-AWQ: the weights that share a scale, the dense modules."""

    group_size: int = 128
    skipped: Sequence[str] | None = field(name="modules_to_not_convert", default=None)
    quant_method: str = "awq"
    bits: int = 4
    version: str = "gemm"
    zero_point: bool = True

    def __post_init__(self) -> None:
        if self.group_size not in GROUPS:
            raise ValueError(f"AWQ group_size {self.group_size} is not supported; supported: {', '.join(map(str, GROUPS))}")

    def covers(self, module: str) -> bool:
        """Whether the Hugging Face module of this name is stored in 4 bits."""
        return ".layers." in module and not any(key in module for key in self.skipped or ())


NOTHING = Scheme(skipped=("",))


def scheme_of(raw: dict[str, Any], path: Path = CONFIG) -> Scheme | None:
    """The AWQ scheme of a config.json dictionary, None for a dense one; Unsupported for any other."""
    method = shaped(raw, Kind, path).quantization_config
    if method is None:
        return None
    if method.quant_method != "awq":
        raise Unsupported(f"{path}: quantised by {method.quant_method!r}, which is not supported; supported: 'awq'")
    scheme = shaped(raw["quantization_config"], Scheme, path)
    refuse_others(raw["quantization_config"], FIXED, path)
    return scheme


def unpack(packed: Tensor) -> Tensor:
    """int32 [rows, columns / 8] to uint8 [rows, columns]; nibble i holds column ORDER[i] of each eight."""
    eights = torch.empty(*packed.shape, 8, dtype=torch.uint8, device=packed.device)
    for nibble, column in enumerate(ORDER):
        eights[..., column] = ((packed >> (4 * nibble)) & 15).to(torch.uint8)
    return eights.flatten(1)


class Awq(NamedTuple):
    """One weight as stored in an AWQ checkpoint: transposed, eight integers per int32."""

    qweight: Tensor  # [in, out / 8] int32
    qzeros: Tensor  # [in / group, out / 8] int32
    scales: Tensor  # [in / group, out] floating point

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""
        return self.scales.shape[1], self.qweight.shape[0]

    @property
    def group_size(self) -> int:
        """Input columns that share one scale."""
        return self.qweight.shape[0] // self.scales.shape[0]

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [in, out] uint8, zeros and scales [in / group, out]; a weight is (code - zero) * scale."""
        return unpack(self.qweight), unpack(self.qzeros).float(), self.scales.float()


def dequantise(weight: Awq, into: Tensor) -> Tensor:
    """Fill a dense weight [out, in], computed in float32 and rounded once."""
    codes, zeros, scales = weight.numbers()
    wide = codes.float().unflatten(0, (len(scales), -1)).sub_(zeros[:, None]).mul_(scales[:, None])
    return into.copy_(wide.flatten(0, 1).t())


def layer(weight: Awq, bias: Tensor | None, shelf: Shelf) -> PackedLinear | Int4Linear:
    """A linear layer on a 4-bit weight: our integer kernels on the CPU, torch's int4 matmul on CUDA."""
    if weight.qweight.device.type != "cpu":
        return Int4Linear(weight, bias)
    codes, zeros, scales = weight.numbers()
    first, second = (table.t().repeat_interleave(weight.group_size // CELL, 1) for table in (scales, zeros * scales))
    return PackedLinear([packed(codes.t(), first, second, "u4", shelf)], bias)


class Int4Linear(nn.Module):
    """A linear layer on torch's int4 matmul for CUDA: w = (q - 8) * scale + zero, with zero = (8 - z) * scale.

    The packed weight is tied to the device it was made on; load again instead of moving it.
    """

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, weight: Awq, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group_size = weight.group_size
        if self.out_features % 8 or self.in_features % self.group_size:
            raise ValueError(
                f"torch's int4 matmul cannot take a {self.out_features} x {self.in_features} weight: rows must divide by 8 "
                f"and columns by the group of {self.group_size}; load with weights='dense'"
            )
        codes, zeros, scales = weight.numbers()
        rows = codes.t().contiguous()
        pairs = rows[:, ::2] << 4 | rows[:, 1::2]
        tiles = next(tiles for tiles in (8, 4, 2) if self.in_features % (16 * tiles) == 0)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles))
        self.register_buffer("scales_and_zeros", torch.stack((scales, (8 - zeros) * scales), dim=-1).bfloat16())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in x's dtype."""
        flat = x.reshape(-1, self.in_features).bfloat16()
        product = torch.ops.aten._weight_int4pack_mm(flat, self.packed, self.group_size, self.scales_and_zeros)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*x.shape[:-1], self.out_features).to(x.dtype)

"""4-bit weights in AWQ's GEMM layout (Lin et al. 2023, MLSys 2024, and AutoAWQ's packing), and torch's int4 matmul on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from flashspec.models.config import CONFIG, Unsupported
from flashspec.models.files import Awq, Kind, shaped

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUPS = (32, 64, 128, 256)
WANTED = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
BLOCK = 1 << 22


@dataclass(frozen=True)
class Scheme:
    """What a quantization_config promises: weights a group shares a scale with, and modules left dense."""

    group_size: int = 128
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.group_size not in GROUPS:
            raise ValueError(f"AWQ group_size {self.group_size} is not supported; supported: {', '.join(map(str, GROUPS))}")

    def covers(self, module: str) -> bool:
        """True when the Hugging Face module of this name is stored in 4 bits."""
        return ".layers." in module and not any(key in module for key in self.skipped)


NOTHING = Scheme(skipped=("",))


def scheme_of(raw: dict[str, Any], path: Path = CONFIG) -> Scheme | None:
    """The AWQ scheme of a config.json dictionary, None for a dense one; Unsupported, a ValueError, for any other."""
    method = shaped(raw, Kind, path).quantization_config
    if method is None:
        return None
    found: dict[str, Any] = {"quant_method": method.quant_method}
    if method.quant_method == "awq":
        table = shaped(raw["quantization_config"], Awq, path)
        found |= {"bits": table.bits, "version": table.version, "zero_point": table.zero_point}
    for key, value in found.items():
        if value != WANTED[key]:
            raise Unsupported(
                f"quantization_config has {key} = {value!r}; only {key} = {WANTED[key]!r} is supported: "
                "use an AWQ checkpoint of version gemm, or a dense one"
            )
    return Scheme(table.group_size, tuple(table.modules_to_not_convert or ()))


def scheme_to_hf(scheme: Scheme) -> dict[str, Any]:
    """The quantization_config of this scheme, key for key as in Qwen3-32B-AWQ."""
    return {
        "bits": 4,
        "group_size": scheme.group_size,
        "modules_to_not_convert": list(scheme.skipped) or None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def pack(values: Tensor) -> Tensor:
    """Pack [rows, columns] integers 0..15 into int32 [rows, columns / 8]; nibble i holds column ORDER[i] of each eight."""
    if values.shape[1] % 8:
        raise ValueError(f"{values.shape[1]} columns cannot be packed by eight; pad to a multiple of 8")
    eights = values.to(torch.int64).view(values.shape[0], -1, 8)
    packed = torch.zeros(eights.shape[:2], dtype=torch.int64, device=values.device)
    for nibble, column in enumerate(ORDER):
        packed |= eights[..., column] << (4 * nibble)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """Inverse of `pack`: int32 [rows, columns / 8] to uint8 [rows, columns] in 0..15."""
    eights = torch.empty(*packed.shape, 8, dtype=torch.uint8, device=packed.device)
    for nibble, column in enumerate(ORDER):
        eights[..., column] = ((packed >> (4 * nibble)) & 15).to(torch.uint8)
    return eights.flatten(1)


class Quantised(NamedTuple):
    """One weight of `out` rows and `in` columns, stored transposed: w[o, i] = (weight[i, o] - zeros[g, o]) * scales[g, o]."""

    weight: Tensor  # [in, out] uint8 in 0..15
    zeros: Tensor  # [in / group, out] uint8 in 0..15
    scales: Tensor  # [in / group, out] floating point

    @property
    def group_size(self) -> int:
        """Input columns that share one scale."""
        return self.weight.shape[0] // self.scales.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""
        return self.weight.shape[1], self.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the integers lie."""
        return self.weight.device

    def rows(self, start: int, stop: int) -> Quantised:
        """Output rows start..stop-1."""
        return Quantised(*(part[:, start:stop] for part in self))


def unpack_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Quantised:
    """Integers, zero points and scales of one packed AWQ weight."""
    return Quantised(unpack(qweight), unpack(qzeros), scales)


def pack_weight(weight: Quantised) -> dict[str, Tensor]:
    """The qweight, qzeros and scales tensors an AWQ checkpoint stores for this weight."""
    return {"qweight": pack(weight.weight), "qzeros": pack(weight.zeros), "scales": weight.scales.half()}


def fuse(weights: list[Quantised]) -> Quantised:
    """One weight whose output rows are those of the given weights, in order."""
    return Quantised(*(torch.cat(parts, dim=1).contiguous() for parts in zip(*weights, strict=True)))


class Rows(Protocol):
    """A 4-bit weight that gives any of its output rows; they need not exist before they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""

    @property
    def group_size(self) -> int:
        """Input columns that share one scale."""

    @property
    def device(self) -> torch.device:
        """Where the rows come to lie."""

    def rows(self, start: int, stop: int) -> Quantised:
        """Output rows start..stop-1; both are multiples of 8."""


class Stored(NamedTuple):
    """A weight as its files hold it: qweight, qzeros and scales of each source, unpacked only a few rows at a time."""

    parts: list[list[Tensor]]
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight, the sources stacked."""
        return sum(part[2].shape[1] for part in self.parts), self.parts[0][0].shape[0]

    @property
    def group_size(self) -> int:
        """Input columns that share one scale."""
        return self.parts[0][0].shape[0] // self.parts[0][2].shape[0]

    def rows(self, start: int, stop: int) -> Quantised:
        """Output rows start..stop-1, on the device."""
        pieces, offset = [], 0
        for qweight, qzeros, scales in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, scales.shape[1])
            if first < last:
                eights = slice(first // 8, last // 8)
                tensors = (qweight[:, eights], qzeros[:, eights], scales[:, first:last])
                pieces.append(unpack_weight(*(tensor.to(self.device) for tensor in tensors)))
            offset += scales.shape[1]
        return fuse(pieces)


def blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Cuts of the rows into pieces of about BLOCK numbers, multiples of 64 rows but for the last."""
    size = max(64, BLOCK // columns // 64 * 64)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def quantise(weight: Tensor, group_size: int = 128) -> Quantised:
    """Round a dense weight [out, in] to 4 bits, minimum and maximum of each group exactly representable (no search)."""
    groups = weight.float().view(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low).clamp(min=1e-5) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    steps = (groups / scales.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    whole = steps.clamp(0, 15).to(torch.uint8).view_as(weight)
    return Quantised(whole.t().contiguous(), zeros.to(torch.uint8).t().contiguous(), scales.half().t().contiguous())


def dequantise(weight: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dense weight [out, in], computed in float32 and rounded once."""
    zeros = weight.zeros.float().repeat_interleave(weight.group_size, dim=0)
    scales = weight.scales.float().repeat_interleave(weight.group_size, dim=0)
    return ((weight.weight.float() - zeros) * scales).t().contiguous().to(dtype)


class Int4Linear(nn.Module):
    """A linear layer on torch's int4 matmul: w = (q - 8) * scale + zero, with zero = (8 - z) * scale.

    Computes in `dtype` whatever the activations are: bfloat16 is fast, float32 (CPU only) is exact and slow.
    The packed weight belongs to the device it was made on; load again instead of moving it.
    """

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, weight: Rows, bias: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group_size, self.kind = weight.group_size, weight.device.type
        _refuse_shape(weight)
        dtype = torch.bfloat16 if self.kind == "cuda" else dtype
        tables = (self.in_features // self.group_size, self.out_features, 2)
        self.register_buffer("packed", _empty_packed(weight))
        self.register_buffer("scales_and_zeros", torch.empty(tables, dtype=dtype, device=weight.device))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self._take(weight)

    def _take(self, weight: Rows) -> None:
        """Repack a few rows at a time, so that no second copy of the weight ever exists."""
        step = self.out_features // len(self.packed)
        for start, stop in blocks(*weight.shape):
            part = weight.rows(start, stop)
            scales = part.scales.float()
            zeros = (8 - part.zeros.float()) * scales
            self.packed[start // step : stop // step] = _repack(part.weight)
            self.scales_and_zeros[:, start:stop] = torch.stack((scales, zeros), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in x's dtype."""
        if x.device.type != self.kind:
            raise RuntimeError(f"int4 weights are packed for {self.kind}; load the model again with device={x.device.type!r}")
        flat = x.reshape(-1, self.in_features).to(self.scales_and_zeros.dtype)
        product = _MATMUL[self.kind](flat, self.packed, self.group_size, self.scales_and_zeros)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """Shape and group, as torch prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.group_size}"


def _refuse_shape(weight: Rows) -> None:
    outputs, inputs = weight.shape
    rows = 16 if weight.device.type == "cpu" else 8
    if outputs % rows or inputs % max(weight.group_size, 32):
        raise ValueError(
            f"torch's int4 matmul cannot take a {outputs} x {inputs} weight: rows must divide by {rows} and columns by the "
            f"group of {weight.group_size}; load with weights='dense'"
        )


def _tiles(columns: int) -> int:
    """Inner tiles of CUDA's layout, as many as the columns allow."""
    return next(tiles for tiles in (8, 4, 2) if columns % (16 * tiles) == 0)


def _empty_packed(weight: Rows) -> Tensor:
    """Room for the weight in the layout of its device: bytes [out, in / 2] on CPU, int32 tiles on CUDA."""
    outputs, inputs = weight.shape
    if weight.device.type == "cpu":
        return torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    tiles = _tiles(inputs)
    return torch.empty(outputs // 8, inputs // (16 * tiles), 32, tiles // 2, dtype=torch.int32, device=weight.device)


def _repack(weight: Tensor) -> Tensor:
    """From [in, out] integers to the blocks torch's int4 matmul reads on this device."""
    rows = weight.t().contiguous()
    if rows.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(rows.to(torch.int32), 1)
    pairs = rows[:, ::2] << 4 | rows[:, 1::2]
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _tiles(rows.shape[1]))


_MATMUL = {"cpu": torch.ops.aten._weight_int4pack_mm_for_cpu, "cuda": torch.ops.aten._weight_int4pack_mm}

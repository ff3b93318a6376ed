"""Hugging Face checkpoint folders: config.json and safetensors, dense or AWQ. Pickle is never read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashspec.kernels.pages import Shelf
from flashspec.models.awq import NOTHING, Int4Linear, Scheme, Stored, blocks, dequantise, scheme_of
from flashspec.models.config import ModelConfig, from_hf
from flashspec.models.export import save_transformer as save_transformer
from flashspec.models.files import Generation, Kind, ids_of, shaped
from flashspec.models.folder import FLOATS, INTEGERS, Tensors, read_as, read_config
from flashspec.models.folder import verify_digests as verify_digests
from flashspec.models.memory import Form, refuse_too_large
from flashspec.models.named import device_named, dtype_named
from flashspec.models.names import ignored, row_counts, sources
from flashspec.models.transformer import Rope, Transformer

WEIGHTS = ("auto", "int4", "dense")
PACKED, NUMBERS = ("qweight", "qzeros", "scales"), (INTEGERS, INTEGERS, FLOATS)


def load_transformer(folder: str | Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto") -> Transformer:
    """The model of a Hugging Face folder, ready to read tokens.

    `dtype` "auto" keeps float32 and takes everything else as bfloat16; `weights` says what an AWQ checkpoint becomes:
    "int4" (torch's int4 matmul), "dense" (dequantised), "auto" (int4 on CUDA, dense on CPU).
    Weights go straight from the files to their place, 4-bit ones repacked a few rows at a time.
    Raises FileNotFoundError or ValueError, naming the file or tensor, when the folder does not hold exactly this model, and
    ValueError with an estimate when it does not fit the memory that is free.
    """
    folder = Path(folder)
    raw, path = read_config(folder), folder / "config.json"
    config, scheme = _config(raw, path), scheme_of(raw, path)
    kind = device_named(device)
    int4 = _int4(weights, scheme, kind, folder)
    form = Form(_dtype(dtype, shaped(raw, Kind, path)), (scheme or NOTHING).group_size if int4 else 0)
    refuse_too_large(str(folder), config, form, kind)
    verify_digests(folder)
    tensors = Tensors(folder)
    if config.tied and _other_head(tensors, config, form.dtype):
        config = replace(config, tied=False)
        refuse_too_large(str(folder), config, form, kind)
    return _Loader(tensors, config, scheme or NOTHING, form.dtype, kind).load(int4)


def _dtype(name: str, about: Kind) -> torch.dtype:
    if name == "auto":
        return torch.float32 if (about.dtype or about.torch_dtype) == "float32" else torch.bfloat16
    return dtype_named(name)


def _other_head(tensors: Tensors, config: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether the files hold a vocabulary weight that differs from the embedding; transformers scores with it, so do we."""
    shape, (head,), (embed,) = (config.vocab_size, config.hidden), sources("head", config), sources("embed", config)
    if f"{head}.weight" not in tensors.where:
        return False
    return not torch.equal(*(tensors.read(f"{name}.weight", shape).to(dtype) for name in (head, embed)))


def _int4(weights: str, scheme: Scheme | None, device: torch.device, folder: Path) -> bool:
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} is not one of: {', '.join(WEIGHTS)}")
    if weights == "int4" and scheme is None:
        raise ValueError(f"{folder} holds no 4-bit weights; use weights='auto', or quantise it first (extra `quantize`)")
    return scheme is not None and (weights == "int4" or weights == "auto" and device.type == "cuda")


def _config(raw: dict[str, Any], path: Path) -> ModelConfig:
    """The model's shape, with the stop tokens of generation_config.json, which transformers prefers, where there is one."""
    config, path = from_hf(raw, path), path.with_name("generation_config.json")
    stops = read_as(path, Generation).eos_token_id if path.is_file() else None
    return config if stops is None else replace(config, eos=ids_of(stops))


@dataclass
class _Loader:
    """Fills one empty transformer from named tensors."""

    tensors: Tensors
    config: ModelConfig
    scheme: Scheme
    dtype: torch.dtype
    device: torch.device
    used: set[str] = field(default_factory=set)
    shelf: Shelf = field(default_factory=Shelf)

    def load(self, int4: bool) -> Transformer:
        self.tensors.need(f"{sources(f'layers.{self.config.layers - 1}.attention_norm', self.config)[0]}.weight")
        with torch.device("meta"):
            model = Transformer(self.config)
        model.rope = Rope(self.config).to(self.device)
        for name, module in _leaves(model):
            self._fill(model, name, module, int4)
        self._refuse_extra()
        return model.eval()

    def _fill(self, model: Transformer, name: str, module: nn.Module, int4: bool) -> None:
        if not isinstance(module, nn.Linear) or not self._packed(name):
            for leaf, empty in list(module.named_parameters(recurse=False)):
                setattr(module, leaf, nn.Parameter(self._dense(name, leaf, empty)))
            return
        bias = None if module.bias is None else self._dense(name, "bias", module.bias)
        weight = self._stored(name, module.out_features, module.in_features)
        if int4:
            parent, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, Int4Linear(weight, bias, self.dtype))
            return
        module.weight = nn.Parameter(self._dequantised(weight))
        module.bias = None if bias is None else nn.Parameter(bias)

    def _packed(self, module: str) -> bool:
        """True where this module is stored in 4 bits; ValueError where only some of its sources are."""
        found = sources(module, self.config)
        kinds = {self.scheme.covers(source) for source in found}
        if len(kinds) > 1:
            raise ValueError(
                f"{', '.join(found)} run as one product but modules_to_not_convert keeps only some of them dense; "
                "quantise them alike"
            )
        return kinds.pop()

    def _read(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...] = FLOATS) -> Tensor:
        self.used.add(name)
        return self.tensors.read(name, shape, kinds)

    def _dense(self, module: str, leaf: str, empty: Tensor) -> Tensor:
        """One dense parameter, its sources stacked along the rows."""
        made = self.shelf.zeros(empty.shape, self.dtype, self.device)
        counts = row_counts(module, empty.shape[0], self.config)
        for source, part in zip(sources(module, self.config), made.split(counts), strict=True):
            part.copy_(self._read(f"{source}.{leaf}", tuple(part.shape)))
        return made

    def _stored(self, name: str, rows: int, columns: int) -> Stored:
        """One 4-bit weight as the files hold it, its sources in order."""
        groups, found = columns // self.scheme.group_size, sources(name, self.config)
        if columns % self.scheme.group_size:
            raise ValueError(
                f"{found[0]} has {columns} columns, not a multiple of the AWQ group, {self.scheme.group_size}: "
                "load another checkpoint"
            )
        parts = []
        for source, count in zip(found, row_counts(name, rows, self.config), strict=True):
            shapes = ((columns, count // 8), (groups, count // 8), (groups, count))
            facts = zip(PACKED, shapes, NUMBERS, strict=True)
            parts.append([self._read(f"{source}.{name}", shape, kinds) for name, shape, kinds in facts])
        return Stored(parts, self.device)

    def _dequantised(self, weight: Stored) -> Tensor:
        made = self.shelf.zeros(weight.shape, self.dtype, self.device)
        for start, stop in blocks(*weight.shape):
            made[start:stop] = dequantise(weight.rows(start, stop), self.dtype)
        return made

    def _refuse_extra(self) -> None:
        extra = [name for name in self.tensors.where if name not in self.used and not ignored(name, self.config.tied)]
        if extra:
            raise ValueError(
                f"tensor {extra[0]!r} in {self.tensors.where[extra[0]]} is not part of the model config.json describes "
                f"({len(extra)} such); the weights and config.json belong to different models"
            )


def _leaves(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Our modules that own a weight, by name."""
    return ((name, module) for name, module in list(model.named_modules()) if isinstance(getattr(module, "weight", None), Tensor))

"""Hugging Face checkpoint folders: config.json and safetensors, dense or AWQ. Pickle is never read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashspec.model.awq import NOTHING, Int4Linear, Quantised, Scheme, dequantise, fuse, scheme_of, unpack_weight
from flashspec.model.config import ModelConfig, from_hf
from flashspec.model.export import save_transformer as save_transformer
from flashspec.model.names import ignored, row_counts, sources
from flashspec.model.transformer import Rope, Transformer
from flashspec.provenance import digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = ("auto", "int4", "dense")
PACKED = ("qweight", "qzeros", "scales")


def load_transformer(folder: str | Path, dtype: str = "auto", device: str = "cpu", weights: str = "auto") -> Transformer:
    """The model of a Hugging Face folder, ready to read tokens.

    `dtype` "auto" keeps float32 and takes everything else as bfloat16; `weights` says what an AWQ checkpoint becomes:
    "int4" (torch's int4 matmul), "dense" (dequantised), "auto" (int4 on CUDA, dense on CPU).
    Raises FileNotFoundError or ValueError, naming the file or tensor, when the folder does not hold exactly this model.
    """
    folder = Path(folder)
    raw = read_config(folder)
    config, scheme = _config(raw, folder), scheme_of(raw)
    kind = _device(device)
    int4 = _int4(weights, scheme, kind, folder)
    verify_digests(folder)
    loader = _Loader(Tensors(folder), config, scheme or NOTHING, _dtype(dtype, raw), kind)
    return loader.load(int4)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for but torch sees no CUDA device; use device='cpu'")
    return torch.device(name)


def _dtype(name: str, raw: dict[str, Any]) -> torch.dtype:
    if name == "auto":
        stored = raw.get("dtype") or raw.get("torch_dtype")
        return torch.float32 if stored == "float32" else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported; use one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _int4(weights: str, scheme: Scheme | None, device: torch.device, folder: Path) -> bool:
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} is not one of: {', '.join(WEIGHTS)}")
    if weights == "int4" and scheme is None:
        raise ValueError(f"{folder} holds no 4-bit weights; use weights='auto', or quantise it first (extra `quantize`)")
    return scheme is not None and (weights == "int4" or weights == "auto" and device.type == "cuda")


def read_config(folder: Path) -> dict[str, Any]:
    """The dictionary of folder/config.json; FileNotFoundError or ValueError in words when there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder at {folder}; give a folder with config.json and safetensors")
    raw = _json(folder / "config.json", "every Hugging Face checkpoint has one: copy the whole folder")
    if not isinstance(raw, dict):
        raise ValueError(f"{folder / 'config.json'} does not hold an object; copy the file again from its source")
    return raw


def _json(path: Path, advice: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {advice}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the file again from its source") from None


def _config(raw: dict[str, Any], folder: Path) -> ModelConfig:
    """The model's shape, with the stop tokens of generation_config.json, which transformers prefers, where there is one."""
    try:
        config = from_hf(raw)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} has no {error}; copy the file again from its source") from None
    path = folder / "generation_config.json"
    stops = _json(path, "").get("eos_token_id") if path.is_file() else None
    if stops is None:
        return config
    return replace(config, eos=tuple(stops) if isinstance(stops, list) else (stops,))


def verify_digests(folder: str | Path) -> None:
    """Compare the folder's files with its digests.json ({file: sha256}); nothing to do where there is none.

    Raises FileNotFoundError for a listed file that is missing and ValueError for one that differs.
    """
    path = Path(folder) / "digests.json"
    if not path.is_file():
        return
    for name, expected in _json(path, "").items():
        file = Path(folder) / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed in digests.json but missing; copy the whole folder again")
        found = digest(file)
        if found != expected:
            raise ValueError(
                f"{file} has SHA-256 {found[:12]}..., digests.json expects {expected[:12]}...; "
                "the file is damaged or was replaced: fetch it again"
            )


class Tensors:
    """The named tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self.where = {name: path for path in self._files() for name in list(self._handle(path).keys())}
        for name, path in self._index().items():
            if self.where.get(name) != path:
                raise ValueError(f"tensor {name} is not in {path}, where the index puts it; copy the folder again")

    def _index(self) -> dict[str, Path]:
        path = self.folder / "model.safetensors.index.json"
        if (self.folder / "model.safetensors").is_file() or not path.is_file():
            return {}
        table = _json(path, "").get("weight_map")
        if not table:
            raise ValueError(f"{path} has no weight_map; copy the file again from its source")
        return {name: self.folder / file for name, file in table.items()}

    def _files(self) -> list[Path]:
        whole = self.folder / "model.safetensors"
        files = sorted(set(self._index().values())) or ([whole] if whole.is_file() else [])
        if not files:
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))
            advice = "pickled weights are never read: convert them to safetensors" if pickled else "copy the whole folder"
            raise FileNotFoundError(f"{self.folder} holds neither model.safetensors nor its index; {advice}")
        return files

    def _handle(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._open:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is named in the index but missing; copy the whole folder again")
            try:
                self._open[path] = safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from None
        return self._open[path]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name; ValueError when it is missing or has another shape."""
        if name not in self.where:
            raise ValueError(f"tensor {name} is missing from {self.folder}; the checkpoint does not match its config.json")
        handle = self._handle(self.where[name])
        found = tuple(handle.get_slice(name).get_shape())
        if found != shape:
            raise ValueError(
                f"tensor {name} in {self.where[name]} has shape {list(found)}, config.json implies {list(shape)}; "
                "the file and config.json belong to different models"
            )
        return handle.get_tensor(name)


@dataclass
class _Loader:
    """Fills one empty transformer from named tensors."""

    tensors: Tensors
    config: ModelConfig
    scheme: Scheme
    dtype: torch.dtype
    device: torch.device
    used: set[str] = field(default_factory=set)

    def load(self, int4: bool) -> Transformer:
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
        weight = self._quantised(name, module.out_features, module.in_features)
        if int4:
            parent, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, Int4Linear(weight, bias, self.dtype))
            return
        module.weight = nn.Parameter(dequantise(weight, self.dtype))
        module.bias = None if bias is None else nn.Parameter(bias)

    def _packed(self, module: str) -> bool:
        """True where this module is stored in 4 bits; ValueError where only some of its sources are."""
        kinds = {self.scheme.covers(source) for source in sources(module)}
        if len(kinds) > 1:
            raise ValueError(
                f"{', '.join(sources(module))} run as one product but modules_to_not_convert keeps only some of them dense; "
                "quantise them alike"
            )
        return kinds.pop()

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.used.add(name)
        return self.tensors.read(name, shape).to(self.device, copy=True)

    def _dense(self, module: str, leaf: str, empty: Tensor) -> Tensor:
        """One dense parameter, its sources stacked along the rows."""
        counts = row_counts(module, empty.shape[0], self.config)
        shapes = [(rows, *empty.shape[1:]) for rows in counts]
        parts = [self._read(f"{source}.{leaf}", shape) for source, shape in zip(sources(module), shapes, strict=True)]
        return torch.cat([part.to(self.dtype) for part in parts]) if len(parts) > 1 else parts[0].to(self.dtype)

    def _quantised(self, name: str, rows: int, columns: int) -> Quantised:
        """One 4-bit weight, its sources stacked along the output rows."""
        groups = columns // self.scheme.group_size
        if columns % self.scheme.group_size:
            raise ValueError(
                f"{sources(name)[0]} has {columns} columns, not a multiple of the AWQ group, {self.scheme.group_size}: "
                "load another checkpoint"
            )
        parts = []
        for source, count in zip(sources(name), row_counts(name, rows, self.config), strict=True):
            shapes = ((columns, count // 8), (groups, count // 8), (groups, count))
            parts.append(
                unpack_weight(*(self._read(f"{source}.{leaf}", shape) for leaf, shape in zip(PACKED, shapes, strict=True)))
            )
        return fuse(parts)

    def _refuse_extra(self) -> None:
        extra = [name for name in self.tensors.where if name not in self.used and not ignored(name, self.config.tied)]
        if extra:
            raise ValueError(
                f"tensor {extra[0]} in {self.tensors.where[extra[0]]} is not part of the model config.json describes "
                f"({len(extra)} such); the weights and config.json belong to different models"
            )


def _leaves(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Our modules that own a weight, by name."""
    return ((name, module) for name, module in list(model.named_modules()) if isinstance(getattr(module, "weight", None), Tensor))

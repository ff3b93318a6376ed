"""Every vocabulary head's interface and products, heads on disk, and heads that score every id: exact, rounded, or logits.

On disk is a head's state and the digest of the weight that it belongs to, never the weight itself.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from flashspec import kernels
from flashspec.kernels import Packed
from flashspec.kernels.build import cache_folder
from flashspec.models.files import T, shaped
from flashspec.models.folder import parsed, read_tensors
from flashspec.models.transformer import RMSNorm
from flashspec.models.writing import write_tensors
from flashspec.provenance import short_hash
from flashspec.sampling import Scores
from flashspec.typed import typed

Norm = Callable[[Tensor], Tensor]
FILE, AGAIN = "flash_head.safetensors", "build the head again"
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Head(ABC):
    """Turns hidden rows, taken before the final norm, into scores over the vocabulary: ids run from 0 to vocab_size - 1."""

    vocab_size: int

    @abstractmethod
    def __call__(self, rows: Tensor) -> Scores:
        """Scores of rows [n, hidden]."""

    def bytes_read(self, rows: int) -> int:
        """Bytes of weights read to score this many rows at once; what rows share is read once."""
        return 0

    def learn(self, tokens: Tensor, scores: Scores | None) -> None:  # noqa: B027 - most heads learn nothing
        """Take in newly final tokens and the last stage's scores after them, None as a text starts."""


@dataclass(frozen=True, eq=False)
class WeightHead(Head):
    """A head over one weight [vocab, hidden], a Tensor or Packed, that scores rows after the norm.

    `scoring` is the head as one call of the compiled kernels, None where they do not serve it.
    """

    norm: Norm | None
    weight: Any
    scoring: ClassVar[Any] = None

    def __post_init__(self) -> None:
        vars(self).update(weight=weight_of(self.weight), norm=fused(self.norm))

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Scores:
        """Scores of rows [n, hidden]."""
        if self.scoring is not None and self.scoring.serves(rows):
            return Scores(*self.scoring(rows))
        return self.score(self.states(rows))

    @abstractmethod
    def score(self, states: Tensor) -> Scores:
        """Scores of normalised rows [n, hidden]."""

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.weight.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the rows it reads."""
        return self.weight.shape[1]

    def with_plan(self, **changes: Any) -> Self:
        """This head with other options, such as `probes` and `shortlist`; nothing is copied."""
        return replace(self, **changes)

    def states(self, rows: Tensor) -> Tensor:
        """Rows [n, hidden] after the norm; ValueError for another shape."""
        check_rows(rows, self.hidden)
        return rows if self.norm is None else self.norm(rows)

    def compiled(self, first: Tensor | Packed, blocks: kernels.Blocks | None = None) -> kernels.Scoring | None:
        """Norm, product with `first` and choice of `blocks` in one call; None for another library's norm."""
        ours = self.norm is None or isinstance(self.norm, kernels.Norm)
        return kernels.scoring(cast(Any, self.norm), first, blocks) if ours else None


def fused(norm: Norm | None) -> Norm | None:
    """The norm as one kernel call if it is one of our own; another norm, or none, as it is."""
    if not (isinstance(norm, RMSNorm) or (isinstance(norm, nn.LayerNorm) and norm.bias is not None)):
        return norm
    wide, both = torch.promote_types(norm.weight.dtype, torch.float32), (norm.weight, getattr(norm, "bias", None))
    weight, bias = (None if t is None else t.detach().to(wide).contiguous() for t in both)
    return cast(Norm, kernels.Norm(cast(Tensor, weight), norm.eps, bias))


W = TypeVar("W", Tensor, Packed, Tensor | Packed)


def weight_of(weight: W) -> W:
    """A head's weight [vocab, hidden], detached and contiguous; ValueError for anything else."""
    if isinstance(weight, Packed):
        return weight
    if weight.ndim != 2:
        raise ValueError(f"a head weight has the shape [vocabulary, hidden width], got {list(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"a head weight is made of floating-point numbers, got {weight.dtype}; dequantise it first")
    return weight.detach().contiguous()


def check_rows(rows: Tensor, width: int) -> None:
    """Refuse hidden rows that are not [n, width]."""
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"this head reads rows of shape [n, {width}], got {list(rows.shape)}; use the head of the same model")


def check_count(name: str, count: int, most: int, of: str) -> int:
    """Refuse a count that is not between 1 and `most`."""
    if not 1 <= count <= most:
        raise ValueError(f"{name} must lie between 1 and the {most} {of}, got {count}")
    return count


def wide(weight: Tensor | Packed) -> torch.dtype:
    """The dtype that products with a weight are computed in: float64 for a float64 weight, else float32."""
    return torch.float64 if isinstance(weight, Tensor) and weight.dtype is torch.float64 else torch.float32


def widened(weight: Tensor | Packed) -> Tensor:
    """A weight in floating point; a packed one becomes float32."""
    return weight.dequantised() if isinstance(weight, Packed) else weight


def project(states: Tensor, weight: Tensor | Packed) -> Tensor:
    """Logits [n, N] of states [n, D] against weight [N, D]."""
    if isinstance(weight, Packed):
        return kernels.packed_linear(states, weight)
    return kernels.linear(states.to(wide(weight)), weight)


def project_blocks(states: Tensor, blocks: Tensor | Packed, chosen: Tensor) -> Tensor:
    """Logits [n, P, size] of states [n, D] against the chosen [n, P] of blocks [C, size, D]."""
    return kernels.gather_linear(states.to(wide(blocks)), blocks, chosen)


class HeadFile(NamedTuple):
    """The contents of a head's file."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def numbers(self, name: str, dimensions: int) -> Tensor:
        """A tensor of whole numbers; ValueError where it is missing, empty or something else."""
        found = self.tensors.get(name)
        if found is None or found.ndim != dimensions or not found.numel() or found.dtype not in WHOLE:
            raise ValueError(f"{self.path.name} has no {name} of whole numbers in {dimensions} dimensions; {AGAIN}")
        return found

    def fact(self, name: str, kind: type[T]) -> T:
        """A fact as this type; ValueError where it is missing or something else."""
        return shaped(self.facts.get(name), kind, self.path, AGAIN)


class StoredHead(WeightHead):
    """A head whose state, tensors and facts beside the weight, can be stored and restored."""

    key: ClassVar[str]
    file: ClassVar[str] = ""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON facts to write."""

    @classmethod
    @abstractmethod
    def restored(cls, file: HeadFile, weight: Any, norm: Norm | None) -> Self:
        """The head of this stored state over this weight; ValueError where they do not fit."""

    def save(self, path: Path | str, told: dict[str, Any] | None = None) -> None:
        """Write the head's state with these facts about it; an interrupted write leaves the old file."""
        tensors, facts = self.state()
        facts |= {"told": told} if told else {}
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_tensors(ready, self._place(path), {self.key: json.dumps(identity(self.weight) | facts)})

    @classmethod
    @typed
    def load(cls, path: Path | str, weight: Tensor | Packed, norm: Norm | None = None) -> Self:
        """The head that `save` wrote for this weight; FileNotFoundError or ValueError for any other file."""
        weight, path, kind = weight_of(weight), cls._place(path), cls.__name__
        if not path.exists():
            raise FileNotFoundError(f"there is no {kind} file {path}; build one with {kind}.build(...).save(path)")
        tensors, header = read_tensors(path, AGAIN)
        if cls.key not in header:
            raise ValueError(f"{path.name} is a safetensors file, but not of a {kind}; choose one that {kind}.save wrote")
        file, here = HeadFile(path, tensors, parsed(header[cls.key], dict[str, Any], path, AGAIN)), identity(weight)
        if {name: file.facts.get(name) for name in here} != here:
            there = [file.facts.get("vocab_size"), file.facts.get("hidden")]
            what = f"was built from another weight, {there}, than this one, {list(weight.shape)}"
            raise ValueError(f"{path.name} {what}; build one for it")
        return cls.restored(file, weight, norm)

    @classmethod
    def _place(cls, path: Path | str) -> Path:
        return Path(path) / cls.file if Path(path).is_dir() else Path(path)


def kept(weight: Tensor | Packed, norm: Norm | None) -> Path | None:
    """The cache's file for a head over this weight and norm, whether it exists or not; None without a home."""
    home, scale = cache_folder(), getattr(norm, "weight", None)
    own = "" if scale is None else weight_digest(scale.detach()[None])  # models of one weight rarely share the norm
    key = short_hash([weight_digest(weight), own], 16)
    return home and home / "heads" / key / FILE


def identity(weight: Tensor | Packed) -> dict[str, Any]:
    """Which weight a head's file belongs to."""
    return {"vocab_size": weight.shape[0], "hidden": weight.shape[1], "weight_sha256": weight_digest(weight)}


def weight_digest(weight: Tensor | Packed) -> str:
    """SHA-256 of the rows as float32 numbers, or of a packed weight's codes."""
    found, packed = hashlib.sha256(), isinstance(weight, Packed)
    for part in (weight.cells if isinstance(weight, Packed) else weight.detach()).split(4096):
        found.update((part if packed else part.float()).cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


@typed
@dataclass(frozen=True, eq=False)
class DenseHead(WeightHead):
    """Logits of the whole vocabulary: weight [vocab, hidden] times the normalised row, exact.

    A `Packed` weight of 8 or 4 bits is the plain cheap head that the others have to beat.
    """

    weight: Tensor | Packed

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.vocab_size

    @cached_property
    def scoring(self) -> kernels.Scoring | None:
        return self.compiled(self.weight)

    def score(self, states: Tensor) -> Scores:
        return Scores(None, project(states, self.weight))

    def bytes_read(self, rows: int) -> int:
        return self.weight.nbytes


def quantized(weight: Tensor, norm: Norm | None = None, bits: int = 8) -> DenseHead:
    """The head of weight [vocab, hidden] rounded to `bits` (8, 6 or 4)."""
    return DenseHead(norm, kernels.pack(weight_of(weight), bits))


@dataclass(frozen=True)
class LogitRows(Head):
    """The head of a reader whose rows [n, vocab] are logits already; the model below has paid for them."""

    vocab_size: int

    def __call__(self, rows: Tensor) -> Scores:
        check_rows(rows, self.vocab_size)
        return Scores(None, rows)

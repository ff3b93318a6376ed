"""Heads by name: how each is made for a model, and which options it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from flashspec.heads.base import FILE, DenseHead, Head, HeadFile, Norm, kept, quantized, widened
from flashspec.heads.candidates import ContextHead, IndexHead, PreviewHead, ShortlistHead
from flashspec.heads.cluster import Clusters
from flashspec.heads.flash import FlashHead
from flashspec.kernels import Packed
from flashspec.models.files import PublicHead, ids_of, shaped
from flashspec.models.folder import inside, read_config, read_tensors
from flashspec.typed import one_of

CACHE = "clustering_cache.safetensors"  # of the public layout


class Origin(NamedTuple):
    """What a head is made from: a model's vocabulary weight [V, D] as stored, its final norm and its folder."""

    weight: Tensor | Packed
    norm: Norm | None = None
    folder: Path | None = None

    @property
    def wide(self) -> Tensor:
        """The weight in floating point."""
        return widened(self.weight)

    def stored(self, name: str) -> Path | None:
        """The file in which the folder keeps the state of this head, if it does."""
        path = None if self.folder is None else self.folder / file_of(name)
        return path if path is not None and path.is_file() else None


class Kind(NamedTuple):
    """How to make a head, and the options of a method that it takes."""

    make: Callable[[Origin], Head]
    options: tuple[str, ...] = ()


def file_of(name: str) -> str:
    """The file name under which a model's folder keeps the state of a head."""
    return FILE if name.startswith("flash") else f"{name}_head.safetensors"


def is_public(folder: Path | str) -> bool:
    """Whether a checkpoint folder switches a FlashHead on in the public layout."""
    return (Path(folder) / "config.json").is_file() and _options(Path(folder)).flash_head_cache_dir is not None


def load_public(folder: Path | str, weight: Tensor, norm: Norm | None = None) -> FlashHead:
    """The FlashHead of a checkpoint folder in the public layout, over its model's `weight` [V, D].

    config.json, or its `text_config`, switches it on with `flash_head_cache_dir`. That folder holds
    clustering_cache.safetensors with `centroids` [1, 1, D, K] or [D, K] and `cluster_assignments` [V], every cluster equally
    often. Raises FileNotFoundError where a file is missing, ValueError where the clusters or options do not fit.
    """
    folder, (vocab, width) = Path(folder), weight.shape
    options = _options(folder)
    if options.flash_head_cache_dir is None:
        raise ValueError(f"{folder / 'config.json'} has no flash_head_cache_dir; this is not a checkpoint with a FlashHead")
    path = inside(folder, f"{options.flash_head_cache_dir}/{CACHE}", folder / "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole FlashHead checkpoint, assets included")
    file = HeadFile(path, read_tensors(path, "fetch it again")[0], {})
    if not {"centroids", "cluster_assignments"} <= file.tensors.keys():
        raise ValueError(f"{path.name} holds no centroids and cluster_assignments; it is not a FlashHead cache")
    assignments = file.numbers("cluster_assignments", 1).long().to(weight.device)
    columns = file.tensors["centroids"]
    count = columns.shape[-1] if columns.ndim else 0
    if list(columns.shape) not in ([width, count], [1, 1, width, count]):
        raise ValueError(f"centroids have the shape [1, 1, {width}, clusters] here, got {list(columns.shape)}")
    if int(assignments.min()) < 0 or int(assignments.max()) >= count:
        raise ValueError(f"cluster numbers run from 0 to {count - 1}, and these do not")
    means = columns.reshape(width, count).T.float().contiguous().to(weight.device)
    clusters = Clusters(assignments, max(1, vocab // count), means)
    special = tuple(dict.fromkeys(ids_of(options.flash_head_special_token_ids)))
    return FlashHead.build(weight, norm, clusters, probes=options.n_probes or max(1, count // 16), always=special)


def _options(folder: Path) -> PublicHead:
    raw, path = read_config(folder), folder / "config.json"
    nested = shaped(raw.get("text_config") or {}, dict[str, Any], path)
    return shaped(nested | {name: value for name, value in raw.items() if value is not None}, PublicHead, path)


def _flash(origin: Origin) -> FlashHead:
    weight, norm, folder = origin
    if path := origin.stored("flash"):
        return FlashHead.load(path, weight, norm)
    if folder is not None and is_public(folder):
        return load_public(folder, origin.wide, norm)
    if (cached := kept(weight, norm)) and cached.is_file():
        return FlashHead.load(cached, weight, norm)
    if weight.shape[0] <= BUILT_NOW:
        return FlashHead.build(weight, norm)
    raise FileNotFoundError(
        f"no FlashHead has been built for this vocabulary of {weight.shape[0]} ids: `flashspec heads build MODEL` builds one "
        "once, in minutes; or draft with the dense head (method 'dense')"
    )


def _ranked(name: str, counted: str, origin: Origin) -> ShortlistHead:
    path = origin.stored(name)
    if path is None:
        raise ValueError(
            f"head {name!r} ranks ids by how often they occur in {counted}, and this model's folder has no {file_of(name)}; "
            f"write it with `flashspec draft rank --head {name} --draft FOLDER --text FILE --out NEW`"
        )
    return ShortlistHead.load(path, origin.wide, origin.norm)


BUILT_NOW = 65536  # ids of a vocabulary that is clustered where it is asked for
FLASH, LISTED = ("probes",), ("shortlist",)
VARIANTS = {f"flash_{kind}": {"stage1": kind} for kind in ("int8", "int4")}  # with centroids of 8 and 4 bits
RANKED = ("fr_spec", "vocab_trim")
HEADS: dict[str, Kind] = {
    "dense": Kind(lambda o: DenseHead(o.norm, o.weight)),
    "int8": Kind(lambda o: quantized(o.wide, o.norm, 8)),
    "int4": Kind(lambda o: quantized(o.wide, o.norm, 4)),
    **dict.fromkeys(("flash", *VARIANTS), Kind(_flash, FLASH)),
    "ivf": Kind(lambda o: IndexHead.build(o.wide, o.norm, "ivf"), ("probes", "shortlist")),
    "ivfpq": Kind(lambda o: IndexHead.build(o.wide, o.norm, "ivfpq"), ("probes", "shortlist")),
    "hnsw": Kind(lambda o: IndexHead.build(o.wide, o.norm, "hnsw"), LISTED),
    "fr_spec": Kind(partial(_ranked, "fr_spec", "a text"), LISTED),
    "vocab_trim": Kind(partial(_ranked, "vocab_trim", "what the target wrote"), LISTED),
    "in_context": Kind(lambda o: ContextHead(o.norm, o.wide), LISTED),
    "preview": Kind(lambda o: PreviewHead.build(o.wide, o.norm), LISTED),
}


def head_named(name: str, origin: Origin) -> Head:
    """A head by name for one model; ValueError for an unknown name, a missing state or library."""
    one_of("head", name, HEADS)
    head: Any = HEADS[name].make(origin)
    return head.with_plan(**VARIANTS[name]) if name in VARIANTS else head

"""What loading a sharded checkpoint takes: anonymous memory at its peak against the size of the files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flashspec.measure.resident import load_in_fresh_process
from flashspec.models.awq import Scheme, scheme_to_hf
from flashspec.models.checkpoint import write_folder
from flashspec.models.config import ModelConfig, parts, to_hf
from flashspec.models.memory import Form, weight_bytes
from flashspec.models.synthetic import GROUP, shape
from flashspec.study.experiment import Experiment, by
from flashspec.study.frames import DataFrame, framed
from flashspec.study.parameters import among, at_least, presets_of
from flashspec.study.tables import Results

FORMATS = {"bf16": 0, "awq": GROUP}


@dataclass(frozen=True)
class Params:
    """Which checkpoint to write, of which size, and how to load it."""

    shape: str = "Qwen3-4B"  # widths; the depth follows from the size
    megabytes: int = 2000  # size of the checkpoint
    shard_megabytes: int = 500  # size of a file
    formats: tuple[str, ...] = ("bf16", "awq")  # how weights are stored and what they become
    repeats: int = 3  # fresh processes

    def __post_init__(self) -> None:
        among("formats", self.formats, FORMATS)
        at_least(self, megabytes=1, shard_megabytes=1, repeats=1)
        shape(self.shape)


@dataclass(frozen=True)
class Row:
    """One load in a fresh process: bytes of the files, anonymous bytes before, at the peak and after, and seconds."""

    format: str
    checkpoint_bytes: int
    before: int
    peak: int
    after: int
    seconds: float
    repeat: int


def measure(params: Params) -> Iterator[Row]:
    """Write each checkpoint to a temporary folder and load it in fresh processes, watched from outside."""
    (name,) = params.formats
    group = FORMATS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_checkpoint(folder, sized(params, group), group, params.shard_megabytes * 10**6)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for repeat in range(params.repeats):
            yield Row(name, size, *load_in_fresh_process(folder, "int4" if group else "dense"), repeat)


def sized(params: Params, group: int) -> ModelConfig:
    """The shape at the depth that comes nearest to the size."""
    one, form = shape(params.shape, 1), Form(torch.bfloat16, group)
    layer = one.layer_parameters * form.body_bytes
    depth = round((params.megabytes * 1e6 - weight_bytes(one, form)) / layer)
    return replace(one, layers=max(1, 1 + depth))


def write_checkpoint(folder: Path, config: ModelConfig, group: int, shard_bytes: int) -> None:
    """A folder of zeros in this shape, dense or AWQ: loading costs the same whatever the numbers are."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts(config):
        packed = bool(group and part.columns) and name.startswith("layers.")
        for source, rows in part.rows.items():
            if packed:
                columns, wide = part.columns, rows // 8
                tensors[f"{source}.qweight"] = torch.zeros(columns, wide, dtype=torch.int32)
                tensors[f"{source}.qzeros"] = torch.zeros(columns // group, wide, dtype=torch.int32)
                tensors[f"{source}.scales"] = torch.zeros(columns // group, rows, dtype=torch.float16)
            for leaf in part.leaves[packed:]:
                tensors[f"{source}.{leaf}"] = torch.zeros(rows, *part.shape(leaf)[1:], dtype=torch.bfloat16)
    extra = {"quantization_config": scheme_to_hf(Scheme(group))} if group else {}
    write_folder(folder, tensors, to_hf(config, "bfloat16") | extra, shard_bytes)


def loads(results: Results) -> DataFrame:
    """Loading in a fresh process: gigabytes of files and of memory at its peak, and their ratio, worst repeat."""
    frame = results.frame.assign(taken=results.frame["peak"] - results.frame["before"])
    worst = frame.loc[frame.groupby("format")["taken"].idxmax()].set_index("format")
    return framed({
        "files, GB": (worst["checkpoint_bytes"] / 1e9).round(2),
        "peak, GB": (worst["taken"] / 1e9).round(2),
        "peak over files": (worst["taken"] / worst["checkpoint_bytes"]).round(3),
        "seconds": worst["seconds"].round(1),
    })  # fmt: skip


PRESETS = presets_of("loading", Params)
EXPERIMENT = Experiment("loading", Params, Row, measure, split=by("formats"), presets=PRESETS)

"""Quantising a dense checkpoint to 4 bits: AWQ (Lin et al. 2023) with AutoAWQ, in Qwen3-32B-AWQ's layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from msgspec import to_builtins

from flashspec.models.checkpoint import write_folder
from flashspec.models.export import CARRIED
from flashspec.models.files import Kind, shaped
from flashspec.models.folder import first_line, read_config
from flashspec.models.packed import Scheme
from flashspec.models.tokenizer import tokenizer_of
from flashspec.models.writing import carry, fresh_folder

CALIBRATION_LENGTH = 512


def quantize_awq(
    source_folder: str | Path, target_folder: str | Path, texts: list[str], group_size: int = 128, blocks: int = 16
) -> None:
    """Write the dense Hugging Face model of source_folder with its layers in 4 bits, the rest in float16.

    `texts` calibrate the search for scales and clipping: at most `blocks` of their 512-token blocks, evenly spread, are used.
    Raises ModuleNotFoundError without the `quantize` extra, FileNotFoundError without a tokenizer, ValueError for fewer than
    512 tokens or a folder that is quantised already, FileExistsError for a target with files in it.
    """
    source, scheme = Path(source_folder), Scheme(group_size)
    raw, samples = _calibration(source, texts, blocks)
    changes = {"dtype": "float16", "torch_dtype": "float16", "quantization_config": to_builtins(scheme)}
    with fresh_folder(Path(target_folder), [source]) as part:
        model = _search(source, samples, group_size)
        carry(source, part, CARRIED)
        tied = shaped(raw, Kind, source / "config.json").tie_word_embeddings
        tensors = dict(model.state_dict())
        if tied:
            tensors.pop("lm_head.weight", None)
        halved = {name: value if value.dtype == torch.int32 else value.half() for name, value in tensors.items()}
        write_folder(part, {n: value.detach().cpu().clone().contiguous() for n, value in halved.items()}, {**raw, **changes})


def _calibration(source: Path, texts: list[str], count: int) -> tuple[dict[str, Any], list[list[int]]]:
    """The dense checkpoint's config.json, and at most `count` blocks of the texts' ids, evenly spread."""
    raw, path = read_config(source), source / "tokenizer.json"
    if shaped(raw, Kind, source / "config.json").quantization_config is not None:
        raise ValueError(f"{source} is quantised already; give the dense checkpoint it was made from")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; calibration needs the checkpoint's tokenizer: copy the whole folder")
    if count < 1:
        raise ValueError(f"blocks must be at least 1, got {count}")
    ids = [number for encoding in tokenizer_of(source).encode_batch(texts) for number in encoding.ids]
    whole = len(ids) // CALIBRATION_LENGTH
    if not whole:
        raise ValueError(f"calibration needs at least {CALIBRATION_LENGTH} tokens of text, got {len(ids)}; give more texts")
    count = min(count, whole)
    starts = [i * whole // count * CALIBRATION_LENGTH for i in range(count)]
    return raw, [ids[start : start + CALIBRATION_LENGTH] for start in starts]


def _search(source: Path, samples: list[list[int]], group_size: int) -> Any:
    """AutoAWQ's scale and clipping search on the CPU or GPU; returns the model with its layers packed.

    Channel scales depend on the activations alone: with the weights' magnitudes as well, the reference target lost 16 %
    perplexity instead of 1 %.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from awq import AutoAWQForCausalLM
    except ImportError as error:
        raise ModuleNotFoundError(
            f"quantising needs AutoAWQ, which does not import here ({first_line(error)}): pip install 'flashspec[quantize]' "
            "into an environment of its own"
        ) from None
    wrapped = AutoAWQForCausalLM.from_pretrained(str(source), torch_dtype=torch.float32, trust_remote_code=False)
    wrapped.quantize(
        None,
        quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "gemm"},
        calib_data=samples,
        max_calib_samples=len(samples),
        max_calib_seq_len=CALIBRATION_LENGTH,
        duo_scaling=False,
    )
    return wrapped.model

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
from flashspec.train import corpus
from flashspec.train.texts import windows

LENGTH = 512  # tokens of a calibration block


def quantize_awq(
    source_folder: str | Path, target_folder: str | Path, texts: list[str], group_size: int = 128, blocks: int = 16
) -> None:
    """Write the dense Hugging Face model of source_folder with its layers in 4 bits, the rest in float16.

    `texts` calibrate the search for scales and clipping: at most `blocks` of their 512-token blocks, evenly spread, are used.
    Raises ModuleNotFoundError without the `quantize` extra, FileNotFoundError without a tokenizer, ValueError for fewer than
    512 tokens or a folder that is quantised already, FileExistsError for a target with files in it.
    """
    source, scheme = Path(source_folder), Scheme(group_size)
    raw = read_config(source)
    about = shaped(raw, Kind, source / "config.json")
    if about.quantization_config is not None:
        raise ValueError(f"{source} is quantised already; give the dense checkpoint it was made from")
    stream = corpus.encoded(tokenizer_of(source), texts, LENGTH)
    samples = windows(stream, min(blocks, len(stream) // LENGTH), LENGTH).tolist()
    changes = {"dtype": "float16", "torch_dtype": "float16", "quantization_config": to_builtins(scheme)}
    with fresh_folder(Path(target_folder), [source]) as part:
        tensors = _search(source, samples, group_size).state_dict()
        carry(source, part, CARRIED)
        if about.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        halved = {name: value if value.dtype == torch.int32 else value.half() for name, value in tensors.items()}
        write_folder(part, {n: value.detach().cpu().clone().contiguous() for n, value in halved.items()}, {**raw, **changes})


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
        max_calib_seq_len=LENGTH,
        duo_scaling=False,
    )
    return wrapped.model

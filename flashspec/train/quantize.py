"""Quantising a dense checkpoint to 4 bits: AWQ (Lin et al. 2023) with AutoAWQ, in Qwen3-32B-AWQ's layout, or GPTQ (Frantar et
al. 2022) with llm-compressor, as compressed-tensors. AutoAWQ is archived and llm-compressor lives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flashspec.decoding.vocabulary import tokenizer_of
from flashspec.models.awq import Scheme, scheme_to_hf
from flashspec.models.export import write_folder
from flashspec.models.files import Kind, shaped
from flashspec.models.folder import read_config
from flashspec.models.writing import fresh_folder
from flashspec.train.package import carry

CALIBRATION_LENGTH = 512
CLIP_ROWS = 512
RECIPE = """
quantization_stage:
  quantization_modifiers:
    GPTQModifier:
      ignore: ["lm_head"]
      config_groups:
        group_0:
          targets: ["Linear"]
          weights: {{num_bits: 4, type: int, symmetric: true, strategy: group, group_size: {group_size}}}
"""
CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def quantize_awq(
    source_folder: str | Path, target_folder: str | Path, texts: list[str], group_size: int = 128, blocks: int = 16
) -> None:
    """Write target_folder: the dense Hugging Face model of source_folder, its layers in 4 bits, the rest in float16.

    `texts` calibrate the search for channel scales and clipping: their tokens are cut into blocks of 512, of which at most
    `blocks`, evenly spread, are used; time grows with their number. The scales are folded into norms and neighbouring
    weights, so the folder needs no extra tensors.
    Raises ModuleNotFoundError without the `quantize` extra, FileNotFoundError without a tokenizer, ValueError when there are
    fewer than 512 tokens of text or the folder is quantised already, FileExistsError for a target with files in it.
    """
    source, scheme = Path(source_folder), Scheme(group_size)
    raw, samples = _calibration(source, texts, blocks)
    changes = {"dtype": "float16", "torch_dtype": "float16", "quantization_config": scheme_to_hf(scheme)}
    with fresh_folder(Path(target_folder), [source]) as part:
        model = _search(source, samples, group_size)
        carry(source, part, CARRIED)
        tied = shaped(raw, Kind, source / "config.json").tie_word_embeddings
        tensors = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
        halved = {name: value if value.dtype == torch.int32 else value.half() for name, value in tensors.items()}
        write_folder(part, {n: value.detach().cpu().clone().contiguous() for n, value in halved.items()}, {**raw, **changes})


def quantize_gptq(
    source_folder: str | Path, target_folder: str | Path, texts: list[str], group_size: int = 128, blocks: int = 16
) -> None:
    """As quantize_awq, by GPTQ with llm-compressor, and written as compressed-tensors, which load through transformers.

    Integers are symmetric: no zero points. Raises ModuleNotFoundError without llm-compressor.
    """
    source, scheme = Path(source_folder), Scheme(group_size)
    _, samples = _calibration(source, texts, blocks)
    with _needing("llmcompressor", "this quantiser is llm-compressor", "AutoAWQ (--by autoawq)"):
        from llmcompressor import oneshot
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in torch.tensor(samples)]
    with fresh_folder(Path(target_folder), [source]) as part:
        oneshot(
            model=str(source),
            dataset=DataLoader(rows),
            recipe=RECIPE.format(group_size=scheme.group_size),
            output_dir=str(part),
            max_seq_length=CALIBRATION_LENGTH,
            num_calibration_samples=len(samples),
        )
        carry(source, part, CARRIED)


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


@contextmanager
def _needing(package: str, why: str, other: str) -> Iterator[None]:
    """Say in words how to get a quantiser that does not import, and which other there is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{why}, which does not import here ({str(error).splitlines()[0]}): pip install {package} into an environment of "
            f"its own, or quantise with {other}"
        ) from None


def _search(source: Path, samples: list[list[int]], group_size: int) -> Any:
    """AutoAWQ's scale and clipping search on the CPU or GPU; the model with its layers packed.

    Channel scales follow the activations alone, so that leaving a layer unscaled is among the candidates: with the
    weights' magnitudes in the scale as well, the reference target lost 16 % perplexity instead of 1 %.
    """
    with _needing("'flashspec[quantize]'", "quantising needs AutoAWQ", "llm-compressor (--by llm-compressor)"):
        from awq import AutoAWQForCausalLM
        from awq.quantize.quantizer import AwqQuantizer

    class Quantizer(AwqQuantizer):
        """The clipping search as matrix products: the same errors, an order of magnitude sooner."""

        def _compute_best_clip(self, w: Tensor, input_feat: Tensor) -> Tensor:
            return best_clip(w, input_feat, self.group_size, lambda clipped: self.pseudo_quantize_tensor(clipped)[0])

    wrapped = AutoAWQForCausalLM.from_pretrained(str(source), torch_dtype=torch.float32, trust_remote_code=False)
    wrapped.quantize(
        None,
        quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "gemm"},
        calib_data=samples,
        max_calib_samples=len(samples),
        max_calib_seq_len=CALIBRATION_LENGTH,
        duo_scaling=False,
        quantizer_cls=Quantizer,
    )
    return wrapped.model


@torch.no_grad()
def best_clip(weight: Tensor, inputs: Tensor, group_size: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """The largest magnitude to keep in each group, [out, groups, 1], for weight [out, in] and inputs [..., in].

    Of ten thresholds from the maximum down to 0.55 of it, the one whose rounded weight changes the group's output least,
    in mean square over at most about 512 input rows (Lin et al. 2023, section 3; AutoAWQ's search).
    """
    rows = inputs.reshape(-1, weight.shape[1])
    rows = rows[:: max(1, rows.shape[0] // CLIP_ROWS)]
    groups = rows.view(len(rows), -1, group_size).permute(1, 2, 0).contiguous()
    whole = weight.view(weight.shape[0], -1, group_size)
    largest = whole.abs().amax(-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, float("inf"))
    for step in range(10):
        limit = largest * (1 - step / 20)
        clipped = torch.clamp(whole, -limit, limit).reshape_as(weight)
        change = (rounded(clipped) - weight).view_as(whole).transpose(0, 1)
        error = torch.bmm(change, groups).square().mean(-1).t().unsqueeze(-1)
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best

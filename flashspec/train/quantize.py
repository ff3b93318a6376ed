"""Quantising a dense checkpoint to 4 bits: AWQ (Lin et al. 2023) with AutoAWQ, in Qwen3-32B-AWQ's layout, or GPTQ (Frantar et
al. 2022) with llm-compressor, as compressed-tensors.

AutoAWQ is archived and llm-compressor lives; nothing else in the library knows either of them.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flashspec.models.awq import Scheme, scheme_to_hf
from flashspec.models.checkpoint import write_folder
from flashspec.models.files import Kind, shaped
from flashspec.models.folder import read_config
from flashspec.models.writing import fresh_folder

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
    source, target, scheme = Path(source_folder), Path(target_folder), Scheme(group_size)
    raw, samples = _calibration(source, texts, blocks)
    changes = {"dtype": "float16", "torch_dtype": "float16", "quantization_config": scheme_to_hf(scheme)}
    with fresh_folder(target, [source]) as part:
        model = _search(source, samples, group_size)
        _carry(source, part)
        tied = shaped(raw, Kind, source / "config.json").tie_word_embeddings
        write_folder(part, _tensors(model, bool(tied)), {**raw, **changes})


def quantize_gptq(
    source_folder: str | Path, target_folder: str | Path, texts: list[str], group_size: int = 128, blocks: int = 16
) -> None:
    """As quantize_awq, by GPTQ with llm-compressor, and written as compressed-tensors, which load through transformers.

    Integers are symmetric: no zero points. Raises ModuleNotFoundError without llm-compressor.
    """
    source, target, scheme = Path(source_folder), Path(target_folder), Scheme(group_size)
    _, samples = _calibration(source, texts, blocks)
    oneshot = _llm_compressor()
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in torch.tensor(samples)]
    with fresh_folder(target, [source]) as part:
        oneshot(
            model=str(source),
            dataset=DataLoader(rows),
            recipe=RECIPE.format(group_size=scheme.group_size),
            output_dir=str(part),
            max_seq_length=CALIBRATION_LENGTH,
            num_calibration_samples=len(samples),
        )
        _carry(source, part)


def _calibration(source: Path, texts: list[str], blocks: int) -> tuple[dict[str, Any], list[list[int]]]:
    """The dense checkpoint's config.json and the blocks of ids that calibrate it."""
    raw = read_config(source)
    if shaped(raw, Kind, source / "config.json").quantization_config is not None:
        raise ValueError(f"{source} is quantised already; give the dense checkpoint it was made from")
    return raw, _spread(_samples(source, texts), blocks)


def _carry(source: Path, target: Path) -> None:
    """Copy what stays the same: tokenizer and generation defaults."""
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _samples(source: Path, texts: list[str]) -> list[list[int]]:
    """All texts as one stream of ids, cut into whole calibration blocks."""
    from tokenizers import Tokenizer

    path = source / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; calibration needs the checkpoint's tokenizer: copy the whole folder")
    tokenizer = Tokenizer.from_file(str(path))
    ids = [id for encoding in tokenizer.encode_batch(texts) for id in encoding.ids]
    blocks = [ids[i : i + CALIBRATION_LENGTH] for i in range(0, len(ids), CALIBRATION_LENGTH)]
    whole = [block for block in blocks if len(block) == CALIBRATION_LENGTH]
    if not whole:
        raise ValueError(f"calibration needs at least {CALIBRATION_LENGTH} tokens of text, got {len(ids)}; give more texts")
    return whole


def _spread(samples: list[list[int]], count: int) -> list[list[int]]:
    """At most `count` of the samples, evenly spread."""
    if count < 1:
        raise ValueError(f"blocks must be at least 1, got {count}")
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _autoawq() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from awq import AutoAWQForCausalLM
    except ImportError as error:
        raise ModuleNotFoundError(
            f"quantising needs AutoAWQ, which does not import here ({str(error).splitlines()[0]}): pip install "
            "'flashspec[quantize]' into an environment of its own, or quantise with llm-compressor (--by llm-compressor)"
        ) from None
    return AutoAWQForCausalLM


def _llm_compressor() -> Callable[..., Any]:
    """llm-compressor's one call."""
    try:
        from llmcompressor import oneshot
    except ImportError as error:
        raise ModuleNotFoundError(
            f"this quantiser is llm-compressor, which does not import here ({str(error).splitlines()[0]}): pip install "
            "llmcompressor into an environment of its own, or quantise with AutoAWQ (--by autoawq)"
        ) from None
    return oneshot


def _search(source: Path, samples: list[list[int]], group_size: int) -> Any:
    """AutoAWQ's scale and clipping search on the CPU or GPU; the model with its layers packed.

    Channel scales follow the activations alone, so that leaving a layer unscaled is among the candidates: with the
    weights' magnitudes in the scale as well, the reference target lost 16 % perplexity instead of 1 %.
    """
    wrapped = _autoawq().from_pretrained(str(source), torch_dtype=torch.float32, trust_remote_code=False)
    settings = {"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "gemm"}
    wrapped.quantize(
        None,
        quant_config=settings,
        calib_data=samples,
        max_calib_samples=len(samples),
        max_calib_seq_len=CALIBRATION_LENGTH,
        duo_scaling=False,
        quantizer_cls=_quantizer(),
    )
    return wrapped.model


def _quantizer() -> type:
    """AutoAWQ's quantiser with its clipping search as matrix products: the same errors, an order of magnitude sooner."""
    from awq.quantize.quantizer import AwqQuantizer

    class Quantizer(AwqQuantizer):
        def _compute_best_clip(self, w: Tensor, input_feat: Tensor) -> Tensor:
            return best_clip(w, input_feat, self.group_size, lambda clipped: self.pseudo_quantize_tensor(clipped)[0])

    return Quantizer


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


def _tensors(model: Any, tied: bool) -> dict[str, Tensor]:
    """The checkpoint's tensors: packed layers as they are, everything else in float16, a tied head left out."""
    tensors = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    return {
        name: (value if value.dtype == torch.int32 else value.half()).detach().cpu().clone().contiguous()
        for name, value in tensors.items()
    }

"""Write our models for other engines: the tokenizer and chat template of a folder, and GGUF files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flashspec.models.chat import chat_of
from flashspec.models.config import ModelConfig, divisors, parts, to_hf
from flashspec.models.folder import GGUF
from flashspec.models.gguf import DIVISORS, FACTS, FAMILIES, PAIRED, STOPS, opened, tensor_name
from flashspec.models.tokenizer import CONTROL, SPECIAL, UNUSED, USER, pre_of
from flashspec.models.transformer import Transformer
from flashspec.models.writing import carry, write_json

BITS = {"q8_0": ("Q8_0", 7), "q4_1": ("Q4_1", 3)}  # the type of matrices, and ggml's number of such a file
CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja",
           "vocab.json", "merges.txt")  # fmt: skip
KINDS: dict[type, str] = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
COLUMNS = 32  # of a block; matrices of other widths stay in half precision


def write_speech(source: Path, tokenizer: Any, folder: Path) -> None:
    """Write what a model's text needs: a folder's own files, or what its GGUF file holds."""
    if source.suffix != GGUF:
        carry(source, folder, CARRIED)
        return
    template, tokens = chat_of(source)
    write_tokenizer(tokenizer, tokens | ({"chat_template": template} if template else {}), folder)


def write_tokenizer(tokenizer: Any, facts: dict[str, Any], folder: Path) -> None:
    """Write a tokenizer, with the settings that make AutoTokenizer give the same ids; `facts` name its special tokens."""
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **facts}
    write_json(about, folder / "tokenizer_config.json")
    tokenizer.save(str(folder / "tokenizer.json"))


def write_gguf(model: Transformer, facts: dict[str, Any], path: Path, bits: str) -> None:
    """Write a GGUF file of a model in floating point, with `facts` about its tokenizer.

    Raises ValueError for a family that is not read from GGUF files, ModuleNotFoundError without the gguf library.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, quants
    except ModuleNotFoundError:
        raise ModuleNotFoundError('GGUF files are written by the gguf library: pip install -e ".[gguf]"') from None
    config, (kind, number) = model.config, BITS[bits]
    if config.family not in FAMILIES:
        raise ValueError(f"{config.family} models are not written as GGUF; readable are {', '.join(FAMILIES)}: use --format hf")
    family = "llama" if config.family == "mistral" else config.family
    writer = GGUFWriter(path, family)
    told = to_hf(config)
    shape = {key: told[name] for name, key in FACTS.items() if told[name] is not None}
    shape |= dict.fromkeys(("attention.value_length", "rope.dimension_count"), config.head_dim)
    if config.rope.kind == "linear":
        shape |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope.factor}
    about = {f"{family}.{key}": value for key, value in (shape | {"vocab_size": config.vocab_size}).items()}
    for key, value in {"general.file_type": number, "general.quantization_version": 2, **about, **facts}.items():
        getattr(writer, KINDS.get(type(value), "add_array"))(key, value)
    for name, weight in _tensors(model):
        form = "Q8_0" if name in ("token_embd.weight", "output.weight") else kind
        form = "F32" if weight.dim() == 1 else form if weight.shape[1] % COLUMNS == 0 else "F16"
        raw = quants.quantize(np.ascontiguousarray(weight.numpy()), GGMLQuantizationType[form])
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    for name, part in parts(model.config):
        for leaf in part.leaves:
            for source, weight in part.split(model.get_parameter(f"{name}.{leaf}").detach().float()).items():
                if model.config.family in PAIRED and source.endswith(("q_proj", "k_proj")):
                    halves = weight.view(-1, 2, model.config.head_dim // 2, weight[0].numel())
                    weight = halves.transpose(1, 2).reshape(weight.shape)
                yield tensor_name(source, leaf), weight
    if model.config.rope.kind == "llama3":
        yield DIVISORS, divisors(model.config)


def text_facts(source: Path, tokenizer: Any, config: ModelConfig) -> dict[str, Any]:
    """GGUF facts about a model's text: those of the file that the model came from, or made from its folder.

    Raises ValueError for a tokenizer that GGUF has no name for.
    """
    if source.suffix == GGUF:
        return {key: value for key, value in opened(source).facts.items() if key.startswith("tokenizer.")}
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer.json, which a GGUF file holds; copy it from the checkpoint's source")
    template, special = chat_of(source)
    ids = {key: tokenizer.token_to_id(special[name]) for name, key in SPECIAL.items() if name in special}
    ids |= {"bos": ids.get("bos") if config.bos is None else config.bos, **dict(zip(STOPS, config.eos, strict=False))}
    named = {f"{key}_token_id": i for key, i in ids.items() if i is not None}
    begins = tokenizer.encode("").ids[:1] == [ids["bos"]]
    facts = {"model": "gpt2", "pre": pre_of(tokenizer, source), **_tokens(tokenizer, config.vocab_size), **named}
    told = {f"tokenizer.ggml.{key}": value for key, value in {**facts, "add_bos_token": begins}.items()}
    return told | ({"tokenizer.chat_template": template} if template else {})


def _tokens(tokenizer: Any, size: int) -> dict[str, list[Any]]:
    raw, words = json.loads(tokenizer.to_str()), {i: token for token, i in tokenizer.get_vocab().items()}
    if max(words) >= size:
        raise ValueError(f"the tokenizer has the id {max(words)} and the model rows for {size}; copy the folder from its source")
    kinds = {each["id"]: CONTROL if each["special"] else USER for each in raw["added_tokens"]}
    return {
        "tokens": [words.get(i, f"[PAD{i}]") for i in range(size)],
        "token_type": [kinds.get(i, 1 if i in words else UNUSED) for i in range(size)],
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]],
    }

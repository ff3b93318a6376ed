"""Tokenizers, read from a folder or a GGUF file, and whether models share one vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashspec.models.checkpoint import speaker
from flashspec.models.folder import GGUF
from flashspec.models.gguf import Gguf, opened

DIGITS_AND_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{{{digits}}}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"qwen2": DIGITS_AND_WORDS.replace("{{{digits}}}", ""), "llama-bpe": DIGITS_AND_WORDS.replace("{{{digits}}}", "{1,3}")}
PROBE = "It's 12345 x\t\tWE'LL  go!?\r\n\n  Größe e\u0301 नमस्ते, 漢字٣٤ 🙂🙂 (a_b) \n"  # tells all of them apart
PRE = ("gpt-2", "smollm", *SPLITS)
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding"}
CONTROL, USER, UNUSED = 3, 4, 5  # types of tokens
SHOWN = 8  # ids that a refusal names


def words_of(folder: Path) -> dict[int, str]:
    """The token of every id, empty without a tokenizer; ValueError where its file is damaged."""
    folder = speaker(folder)
    if folder.suffix == GGUF:
        return _words(opened(folder))
    made = tokenizer_of(folder)
    return {i: token for token, i in made.get_vocab().items()} if made else {}


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a checkpoint, None where it has none; ValueError where its file is damaged."""
    from tokenizers import Tokenizer

    folder = speaker(folder)
    if folder.suffix == GGUF:
        return from_gguf(opened(folder))
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is not a tokenizer that can be read ({said}); copy the file again from its source") from None


def check_tokenizers(target: Path, draft: Path) -> None:
    """Refuse two folders whose tokenizers give one id to different tokens."""
    mine, theirs = words_of(target), words_of(draft)
    if not mine or not theirs or mine == theirs:
        return
    wrong = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
    here, there = (words.get(wrong[0], "nothing") for words in (mine, theirs))
    named = ", ".join(map(str, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
    raise ValueError(
        f"draft and target have different vocabularies ({len(wrong)} ids differ: {named}; id {wrong[0]} is {here!r} in the "
        f"target and {there!r} in the draft); use models of one tokenizer"
    )


def cut_padding(models: Mapping[str, Any], folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Cut models of one tokenizer to the smallest vocabulary among them; returns the roles that were cut.

    Does nothing for a folder without tokenizer; ValueError for fewer rows than a tokenizer has ids.
    """
    sizes = {role: model.config.vocab_size for role, model in models.items()}
    smallest = min(sizes, key=lambda role: sizes[role])
    longer = tuple(role for role, size in sizes.items() if size > sizes[smallest])
    words = [words_of(folders[role]) for role in models] if longer else []
    if not longer or not all(words):
        return ()
    known = max(max(found) for found in words) + 1
    if sizes[smallest] < known:
        raise ValueError(
            f"the {smallest} has rows for {sizes[smallest]} ids and its tokenizer knows {known}; "
            "the weights and tokenizer.json belong to different models: copy the folder again from its source"
        )
    for role in longer:
        models[role].cut_vocabulary(sizes[smallest])
    return longer


def from_gguf(file: Gguf) -> Any:
    """The file's byte-level tokenizer as a tokenizers.Tokenizer; ValueError for one of another kind."""
    from tokenizers import AddedToken, processors

    kind, pre = file.facts.get("tokenizer.ggml.model"), file.facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE:
        raise ValueError(
            f"{file.path} splits text as {kind!r} with {pre!r}, readable are byte pairs ('gpt2') with {', '.join(PRE)}; "
            "give the model's Hugging Face folder"
        )
    tokens, kinds = _texts(file, "tokens"), file.facts.get("tokenizer.ggml.token_type", [])
    ids = {token: i for i, token in _words(file).items()}
    merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in _texts(file, "merges"))]
    try:
        made = _blank(pre, ids, merges)
    except Exception as error:  # the library raises its own
        raise ValueError(f"{file.path} holds merges that its tokens do not have ({error}); fetch the file again") from None
    added = {CONTROL: made.add_special_tokens, USER: made.add_tokens}
    for token, what in zip(tokens, kinds, strict=False):
        if what in added:
            added[what]([AddedToken(token, normalized=False, special=what == CONTROL)])
    bos = file.facts.get("tokenizer.ggml.bos_token_id")
    if file.facts.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and isinstance(bos, int) and bos < len(tokens):
        made.post_processor = processors.TemplateProcessing(f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)])
    return made


def pre_of(tokenizer: Any, told: Path) -> str:
    """GGUF's name for how a tokenizer, read from `told`, splits texts; ValueError for an unknown way."""
    raw = json.loads(tokenizer.to_str())
    pieces = _pieces(tokenizer) if raw["model"]["type"] == "BPE" and not raw["model"]["byte_fallback"] else None
    for pre in PRE:
        if pieces == _pieces(_blank(pre)) and raw["model"]["ignore_merges"] == (pre == "llama-bpe"):
            return pre
    raise ValueError(f"the tokenizer of {told} is none of {', '.join(PRE)}, which GGUF files are written with: use --format hf")


def _pieces(tokenizer: Any) -> list[str]:
    text = tokenizer.normalizer.normalize_str(PROBE) if tokenizer.normalizer else PROBE
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]


def _words(file: Gguf) -> dict[int, str]:
    kinds = file.facts.get("tokenizer.ggml.token_type", [])
    tokens = file.facts.get("tokenizer.ggml.tokens", [])
    return {i: token for i, token in enumerate(tokens) if i >= len(kinds) or kinds[i] != UNUSED}


def special_tokens(file: Gguf) -> dict[str, str]:
    """The texts of a file's special tokens under Hugging Face's names."""
    tokens = _texts(file, "tokens")
    ids = {name: file.facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    return {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}


def _texts(file: Gguf, name: str) -> list[str]:
    found = file.facts.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(
            f"{file.path} holds no tokenizer.ggml.{name}; give the model's Hugging Face folder, or fetch the file again"
        )
    return found


def _blank(pre: str, *tokens_and_merges: Any) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    made = Tokenizer(models.BPE(*tokens_and_merges, ignore_merges=pre == "llama-bpe"))
    made.decoder = decoders.ByteLevel()
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)]
    if pre in SPLITS:
        steps.insert(0, pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"))
    elif pre == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    return made

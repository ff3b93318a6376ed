"""Whether models share one vocabulary: the words of their tokenizers, and embedding rows that are only padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashspec.models import gguf_tokenizer
from flashspec.models.borrowed import speaker
from flashspec.models.folder import GGUF
from flashspec.models.gguf import opened
from flashspec.models.transformer import Transformer

SAID = 8


def words_of(folder: Path) -> dict[int, str]:
    """The token of every id, empty without a tokenizer; ValueError where its file is damaged."""
    folder = speaker(folder)
    if folder.suffix == GGUF:
        return gguf_tokenizer.words(opened(folder))
    made = tokenizer_of(folder)
    return {i: token for token, i in made.get_vocab().items()} if made else {}


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a checkpoint, None where it has none; ValueError where its file is damaged."""
    from tokenizers import Tokenizer

    folder = speaker(folder)
    if folder.suffix == GGUF:
        return gguf_tokenizer.tokenizer(opened(folder))
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
    named = ", ".join(map(str, wrong[:SAID])) + (", ..." if len(wrong) > SAID else "")
    raise ValueError(
        f"draft and target have different vocabularies ({len(wrong)} ids differ: {named}; id {wrong[0]} is {here!r} in the "
        f"target and {there!r} in the draft); use models of one tokenizer"
    )


def cut_padding(models: Mapping[str, Transformer], folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Cut models of one tokenizer to the smallest vocabulary among them; returns the roles that were cut.

    Does nothing where sizes agree or a folder has no tokenizer; ValueError for fewer rows than a tokenizer has ids.
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

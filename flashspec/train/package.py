"""Completing a model folder: tokenizer files that transformers reads, and digests."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from flashspec.models.folder import read_json
from flashspec.models.writing import write_json
from flashspec.provenance import digest

END = "<|endoftext|>"
ROLES = {"bos_token": END, "eos_token": END, "pad_token": END}


def write_tokenizer(folder: str | Path, tokenizer_json: str | Path) -> None:
    """Copy tokenizer.json into the folder and describe it, so that AutoTokenizer and our own loader give the same ids.

    The end-of-text token begins, ends and pads. Raises ValueError when the tokenizer does not have it.
    """
    from tokenizers import Tokenizer

    source, folder = Path(tokenizer_json), Path(folder)
    end = Tokenizer.from_file(str(source)).token_to_id(END)
    if end is None:
        raise ValueError(f"{source} has no token {END}; train the tokenizer with it as a special token")
    folder.mkdir(parents=True, exist_ok=True)
    if source.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(source, folder / "tokenizer.json")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(end): {"content": END, **flags}},
        **ROLES,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    }
    write_json(about, folder / "tokenizer_config.json")
    write_json(ROLES, folder / "special_tokens_map.json")


def carry(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that the source has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def sign(folder: Path, name: str) -> None:
    """Bring one file's entry in a folder's digests.json, if it has one, up to date."""
    path = folder / "digests.json"
    if path.is_file():
        write_json({**read_json(path, ""), name: digest(folder / name)}, path)


def write_digests(folder: str | Path) -> None:
    """Write digests.json with the SHA-256 of every other file of the folder; loading the folder checks it."""
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "digests.json")
    write_json({path.name: digest(path) for path in files if not path.name.startswith(".")}, folder / "digests.json")

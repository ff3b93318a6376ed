"""The reference corpus: the Python standard library, split by module into training and held-out files.

It is a fixed function of the library; the study's prompts were cut from the held-out modules.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flashspec.models import export
from flashspec.models.folder import read_as
from flashspec.models.writing import fresh_folder, write_json

SKIPPED_FOLDERS = ("site-packages", "__pycache__", "encodings", "lib2to3/tests/data", "test/cjkencodings")
LARGEST_FILE = 300_000
HELD_OUT_SHARE = 0.04
FILES = 64  # of the training modules, where a sample is enough
END = "<|endoftext|>"
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of the running interpreter


def read(path: Path) -> str:
    """A text that the user gave; ValueError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or give another text") from None


def split() -> tuple[list[Path], list[Path]]:
    """Training and held-out modules of the library: UTF-8 .py files of at most LARGEST_FILE bytes, parted by their names."""
    kept: tuple[list[Path], list[Path]] = [], []
    for path in sorted(LIBRARY.rglob("*.py")):
        name, text = path.relative_to(LIBRARY).as_posix(), path.read_bytes()
        if 0 < len(text) <= LARGEST_FILE and not any(folder in name for folder in SKIPPED_FOLDERS):
            with suppress(UnicodeDecodeError):
                text.decode("utf-8")
                number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
                kept[number / 2**32 < HELD_OUT_SHARE].append(path)
    return kept


def sources(paths: Iterable[Path] = (), count: int | None = None) -> list[str]:
    """The given texts, or else those of all training modules, or of this many of them, shuffled."""
    if found := [read(path) for path in paths]:
        return found
    files, _ = split()
    order = range(len(files)) if count is None else np.random.default_rng(0).permutation(len(files))[:count]
    return [read(files[number]) for number in order]


def encoded(tokenizer: Any, texts: Iterable[str], least: int = 0) -> np.ndarray:
    """Texts as one stream of ids; FileNotFoundError without a tokenizer, ValueError for fewer than `least` ids."""
    if tokenizer is None:
        raise FileNotFoundError("the checkpoint's tokenizer.json is missing and a text is to be read; copy the whole folder")
    stream = np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in tokenizer.encode_batch(list(texts))])
    if len(stream) < least:
        raise ValueError(f"the text has {len(stream)} tokens; give at least {least}")
    return stream


def card(train: list[Path], held: list[Path]) -> dict[str, Any]:
    """What a model was trained on: counts, and one digest over all names and texts of the corpus."""
    digest, size = hashlib.sha256(), 0
    for path in sorted(train + held):
        raw = path.read_bytes()
        digest.update(path.relative_to(LIBRARY).as_posix().encode() + b"\0" + raw)
        size += len(raw)
    counts = {"files": len(train) + len(held), "held_out": len(held), "bytes": size}
    return {"python": ".".join(map(str, sys.version_info[:3])), **counts, "sha256": digest.hexdigest()}


def train_tokenizer(texts: Iterable[str], vocab_size: int, end: str = END) -> Any:
    """A byte-level BPE tokenizer whose id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": [end], "initial_alphabet": letters, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    return tokenizer


def write_tokenizer(folder: Path, source: Path) -> None:
    """Write the tokenizer of a tokenizer.json into a folder; the end-of-text token begins, ends and pads.

    Raises ValueError when the tokenizer does not have it.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source))
    if tokenizer.token_to_id(END) is None:
        raise ValueError(f"{source} has no token {END}; train the tokenizer with it as a special token")
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    export.write_tokenizer(tokenizer, {**roles, "add_bos_token": False, "model_max_length": 1 << 20}, folder)


def prepare(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Write tokenizer.json, train.npy, held_out.npy and corpus.json into folder, once; the corpus's card."""
    path = folder / "corpus.json"
    if path.exists():
        return read_as(path, dict)
    parts = split()
    found, texts = card(*parts), [[read(file) for file in files] for files in parts]
    with fresh_folder(folder) as part:
        tokenizer = train_tokenizer(texts[0], vocab_size)
        tokenizer.save(str(part / "tokenizer.json"))
        for name, each in zip(("train", "held_out"), texts, strict=True):
            stream = encoded(tokenizer, [END + text for text in each])
            np.save(part / f"{name}.npy", stream.astype(np.uint16))
        write_json(found, part / path.name)
    return found

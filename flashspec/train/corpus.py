"""The reference corpus: the Python standard library's source, split by module into training and held-out files."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashspec.models.writing import fresh_folder, write_json

END = "<|endoftext|>"
SKIPPED_FOLDERS = ("site-packages", "__pycache__", "encodings", "lib2to3/tests/data", "test/cjkencodings")
LARGEST_FILE = 300_000
HELD_OUT_SHARE = 0.04


@dataclass(frozen=True)
class CorpusCard:
    """What a model was trained on: enough to say whether another machine's corpus is the same."""

    python: str
    files: int
    held_out: int
    bytes: int
    sha256: str


def library_root() -> Path:
    """The running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def modules(root: Path) -> list[Path]:
    """Every readable .py file below root that is neither skipped nor larger than LARGEST_FILE bytes, sorted by path."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(folder in name for folder in SKIPPED_FOLDERS) or path.stat().st_size > LARGEST_FILE:
            continue
        if _text(path):
            found.append(path)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def read(path: Path) -> str:
    """A text that the user gave; ValueError in words where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or give another text") from None


def is_held_out(name: str) -> bool:
    """Whether a module, by its path below the library, is kept from training; a fixed function of the name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return number / 2**32 < HELD_OUT_SHARE


def split(root: Path) -> tuple[list[Path], list[Path]]:
    """Training and held-out modules below root."""
    files = modules(root)
    held = [f for f in files if is_held_out(f.relative_to(root).as_posix())]
    kept = set(held)
    return [f for f in files if f not in kept], held


def card(root: Path) -> CorpusCard:
    """Counts and one digest over all names and texts of the corpus."""
    digest, size = hashlib.sha256(), 0
    train, held = split(root)
    for path in sorted(train + held):
        raw = path.read_bytes()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + raw)
        size += len(raw)
    version = ".".join(map(str, sys.version_info[:3]))
    return CorpusCard(version, len(train) + len(held), len(held), size, digest.hexdigest())


def texts(files: list[Path]) -> Iterator[str]:
    """The text of each file."""
    return (_text(path) for path in files)


def train_tokenizer(files: list[Path], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer with END as id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(files), trainer)
    return tokenizer


def encode(tokenizer: Any, files: list[Path]) -> np.ndarray:
    """All files as one stream of ids (uint16), each file preceded by END."""
    if tokenizer.get_vocab_size() > 65536:
        raise ValueError(f"the corpus stores ids in two bytes; the vocabulary has {tokenizer.get_vocab_size()} entries")
    end = tokenizer.token_to_id(END)
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts(files))):
        stream.append(end)
        stream.extend(encoding.ids)
    return np.asarray(stream, dtype=np.uint16)


def prepare(folder: Path, vocab_size: int = 16384) -> CorpusCard:
    """Write tokenizer.json, train.npy, held_out.npy and corpus.json into folder, once."""
    root = library_root()
    target = folder / "corpus.json"
    if target.exists():
        return CorpusCard(**json.loads(target.read_text()))
    train, held = split(root)
    found = card(root)
    with fresh_folder(folder) as part:
        tokenizer = train_tokenizer(train, vocab_size)
        tokenizer.save(str(part / "tokenizer.json"))
        np.save(part / "train.npy", encode(tokenizer, train))
        np.save(part / "held_out.npy", encode(tokenizer, held))
        write_json(asdict(found), part / target.name)
    return found

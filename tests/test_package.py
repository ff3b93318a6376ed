"""A packaged folder is complete: transformers reads its tokenizer, digests cover every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flashspec.models.writing import write_digests
from flashspec.train.corpus import END, write_tokenizer


def byte_tokenizer(folder: Path, end: str = END) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i + 1 for i, letter in enumerate(alphabet)} | {end: 0}, []))
    tokenizer.add_special_tokens([end])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "source.json"))
    return folder / "source.json"


def test_transformers_gives_the_ids_and_text_of_our_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = byte_tokenizer(tmp_path)
    (tmp_path / "model").mkdir()
    write_tokenizer(tmp_path / "model", source)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "def é(x):\n\treturn  x , ! 'a' # ok\n"
    ids = Tokenizer.from_file(str(source)).encode(text).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == 0


def test_a_tokenizer_without_the_end_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no token"):
        write_tokenizer(tmp_path / "model", byte_tokenizer(tmp_path, end="<stop>"))
    assert not (tmp_path / "model").exists()


def test_digests_cover_every_file_but_themselves(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", ".hidden"):
        (tmp_path / name).write_text(name)
    write_digests(tmp_path)
    write_digests(tmp_path)
    assert list(json.loads((tmp_path / "digests.json").read_text())) == ["README.md", "config.json"]

"""A packaged folder is complete: transformers reads its tokenizer, digests cover every file."""

import json

import pytest
import shelf
from tokenizers import Tokenizer

from flashspec.train.package import write_digests, write_tokenizer


def test_transformers_gives_the_ids_and_text_of_our_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    source = tmp_path / "source.json"
    shelf.train_tokenizer(source, "def f(x): return x")
    write_tokenizer(tmp_path / "model", source)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "def é(x):\n\treturn  x , ! 'a' # ok\n"
    ids = Tokenizer.from_file(str(source)).encode(text).ids
    assert theirs(text)["input_ids"] == ids and theirs.decode(ids) == text
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == 0


def test_a_tokenizer_without_the_end_token_is_refused(tmp_path):
    shelf.train_tokenizer(tmp_path / "source.json", "text", end="<stop>")
    with pytest.raises(ValueError, match="has no token"):
        write_tokenizer(tmp_path / "model", tmp_path / "source.json")
    assert not (tmp_path / "model").exists()


def test_digests_cover_every_file_but_themselves(tmp_path):
    for name in ("config.json", "README.md", ".hidden"):
        (tmp_path / name).write_text(name)
    write_digests(tmp_path)
    write_digests(tmp_path)
    assert list(json.loads((tmp_path / "digests.json").read_text())) == ["README.md", "config.json"]

"""An origin names code, machine and versions, tolerates a missing git, and betrays no host or user."""

import getpass
import hashlib
import json
import socket
from pathlib import Path

import pytest

from flashspec import provenance


def test_origin_names_code_machine_and_versions_and_betrays_no_host_and_no_path():
    found = provenance.origin()
    assert {"commit", "dirty", "date", "machine", "machine_key", "threads", "versions"} <= found.keys()
    assert {"cpu", "cores", "isa", "memory_gib", "device"} <= found["machine"].keys()
    assert {"python", "torch"} <= found["versions"].keys() and found["machine"]["cores"] >= 1
    text = json.dumps(found)
    assert json.loads(text) == found
    here = (f'"{socket.gethostname()}"', f'"{getpass.getuser()}"', f"{Path.home()}/", str(Path(provenance.__file__).parent))
    assert not any(private in text for private in here)


@pytest.mark.parametrize("lacking", ["git", "checkout"])
def test_without_git_or_a_checkout_the_commit_is_open(lacking, monkeypatch, tmp_path):
    if lacking == "git":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.source() == {"commit": None, "dirty": None}


def test_digest_is_sha256_of_the_bytes(tmp_path):
    path = tmp_path / "weights"
    for last in (b"x", b"y"):
        path.write_bytes(b"x" * 2_999_999 + last)
        assert (provenance.digest(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()) == (last == b"x")


def test_models_are_told_by_their_weights_and_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.bin"):
        provenance.digest(tmp_path / "gone.bin")
    with pytest.raises(FileNotFoundError, match="config.json"):
        provenance.model_digests(tmp_path)
    for name in ("model-00001.safetensors", "config.json", "tokenizer.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert set(provenance.model_digests(tmp_path)) == {"model-00001.safetensors", "config.json", "tokenizer.json"}


def test_a_hash_sees_values_and_not_their_order_and_a_machine_is_one_line():
    same = provenance.short_hash({"a": 1, "b": 2}), provenance.short_hash({"b": 2, "a": 1})
    assert same[0] == same[1] != provenance.short_hash({"a": 1, "b": 3})
    text = provenance.describe(provenance.origin())
    assert "cores" in text and "\n" not in text

"""What is installed is said once; what is written appears whole or not at all; origins betray no host."""

import getpass
import json
import re
import socket
import tomllib
from pathlib import Path

import pytest
from shelf import ROOT, refused, train_tokenizer

import flashspec
from flashspec import provenance
from flashspec.models.writing import UNFINISHED, check_free, fresh_folder, new_file, replaced
from flashspec.train.corpus import write_tokenizer


def test_a_tokenizer_without_the_end_token_is_refused(tmp_path):
    train_tokenizer(tmp_path / "source.json", "a text", end="<stop>")
    refused("has no token", write_tokenizer, tmp_path / "model", tmp_path / "source.json")
    assert not (tmp_path / "model").exists()


def test_origin_names_code_machine_and_versions_and_betrays_no_host():
    found = provenance.origin()
    assert {"commit", "dirty", "date", "machine", "machine_key", "threads", "versions"} <= found.keys()
    assert {"cpu", "cores", "isa", "memory_gib", "device"} <= found["machine"].keys() and found["machine"]["cores"] >= 1
    assert {"python", "torch"} <= found["versions"].keys() and re.fullmatch(".*cores.*", provenance.describe(found))
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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name(requirement):
    return re.split(r"[<>=!~\[; ]", requirement.strip())[0].lower()


def test_conda_has_the_projects_name_and_python():
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^( *)- (.+)$", text, flags=re.M)
    packages = [line for indent, line in lines if len(indent) == 2 and not line.endswith(":")]
    (pip,) = [line for indent, line in lines if len(indent) > 2]
    asked = re.fullmatch(r"-e \.\[(.+)\]", pip)[1].split(",")
    assert re.search(r"^name: (.+)$", text, flags=re.M)[1] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in packages
    assert {"book", "quantize"} <= set(asked) <= set(EXTRAS)
    assert [name(package) for package in packages if "faiss" in package] == ["faiss-gpu"]
    assert not any("faiss" in need for extra in asked for need in EXTRAS[extra])


def test_the_project_needs_the_core_alone_has_its_licence_in_full():
    core, study = {"torch", "numpy", "safetensors", "tokenizers", "tqdm", "click"}, {"msgspec", "jinja2"}
    assert {name(need) for need in PROJECT["dependencies"]} == core | study
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"]["text"] == "Apache-2.0" and "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert f"license: {PROJECT['license']['text']}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert PROJECT["version"] == flashspec.__version__ == newest


TAKEN = pytest.raises(FileExistsError, match="holds files already")


@pytest.mark.parametrize("write", [fresh_folder, replaced, new_file])
@pytest.mark.parametrize("left", [False, True])
def test_what_is_written_appears_whole_or_not_at_all(tmp_path, write, left):
    path, unfinished = tmp_path / "made", tmp_path / f".made{UNFINISHED}"
    inner = "x" if write is fresh_folder else ""
    if left:  # what kill -9 leaves
        (unfinished / inner).mkdir(parents=True) if inner else unfinished.write_text("half")
    for place in (path, tmp_path / "a" / "b") if inner else (path,):
        with pytest.raises(KeyboardInterrupt), write(place) as part:
            (part / inner).write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with write(path) as part:
        (part / inner).write_text("whole")
    assert (path / inner).read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("hidden", [".git/HEAD", ".notes", ".new.part/mine"])
def test_what_is_hidden_is_no_less_its_owners(tmp_path, hidden):
    taken, beside = tmp_path / "taken" / hidden, tmp_path / hidden
    for path in (taken, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("keep me")
    with TAKEN, fresh_folder(tmp_path / "taken"):
        pass
    with fresh_folder(tmp_path / "new") as part:
        (part / "whole").write_text("x")
    assert taken.read_text() == beside.read_text() == "keep me" and (tmp_path / "new" / "whole").exists()


def test_only_a_record_of_ours_may_be_used_again(tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    check_free(tmp_path, ours="corpus.json")
    (tmp_path / "model.gguf").write_text("weights")
    for ours in ("", "corpus.json"):
        with TAKEN:
            check_free(tmp_path, ours=ours)

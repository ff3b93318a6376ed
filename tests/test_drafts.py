"""Drafts are found by name, folder, family and recipe; shapes are spread at equal parameters; variants need enough text."""

import json
from dataclasses import asdict, replace

import pytest
import shelf
import tiny

from flashspec.models.family import FAMILY
from flashspec.models.synthetic import reshaped, shape
from flashspec.models.writing import write_digests
from flashspec.study import drafts
from flashspec.train.corpus import write_tokenizer
from flashspec.train.design import docstrings

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    shelf.write_pair(root)
    tiny.model(1).save(root / "flat", "float32")
    (root / "flat" / "design.json").write_text(json.dumps({"design": {"steps": 7}, "target": {}}))
    write_tokenizer(root / "flat", root / "tokenizer.json")
    write_digests(root / "flat")
    tiny.prompts_file(root, each=3)
    return root


@pytest.mark.parametrize("name", ["OPT-125M", "OPT-1.3B", "Qwen3-0.6B"])
@pytest.mark.parametrize("divisor", [2, 4])
def test_a_reshaped_body_has_the_same_parameters(name, divisor):
    whole = shape(name)
    wide = reshaped(whole, whole.layers // divisor)
    assert wide.body_parameters == pytest.approx(whole.body_parameters, rel=0.01)
    assert wide.hidden > whole.hidden and wide.head_dim == whole.head_dim and wide.heads % wide.kv_heads == 0
    assert replace(whole, layers=wide.layers).body_parameters < 0.6 * whole.body_parameters


def test_a_body_that_cannot_be_reshaped_is_refused():
    with pytest.raises(ValueError, match="layers must be at least 1"):
        reshaped(shape("OPT-125M"), 0)
    with pytest.raises(ValueError, match="attention alone"):
        reshaped(replace(shape("OPT-125M"), ffn=8), 1)


def test_docstrings_of_few_words_and_broken_sources_are_left_out():
    found = list(docstrings(['def f():\n    """too short"""', "not python (", f'"""{" ".join(["word"] * 12)}"""']))
    assert found == [" ".join(["word"] * 12) + "\n\n"]


def test_drafts_are_found_by_name_folder_and_family(home, tmp_path, monkeypatch):
    assert {"main", "shallow"} <= set(drafts.drafts_of(()))
    monkeypatch.chdir(home)
    (home / "family").mkdir(exist_ok=True)
    if not (home / "family" / "flat").exists():
        (home / "family" / "flat").symlink_to(home / "flat")
    assert drafts.finished("family") == {"flat": home / "family" / "flat"} and drafts.finished("nowhere") == {}
    assert set(drafts.drafts_of(("main", str(home / "flat")))) == {"main", "flat"}
    with pytest.raises(ValueError, match="different names"):
        drafts.drafts_of((str(home / "flat"), str(home / "family" / "flat")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        drafts.drafts_of(("nowhere",))


def test_the_point_that_ships_is_known_by_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "SHIPPED", tmp_path)
    assert drafts.point_of_designed() is None
    (tmp_path / "designed").mkdir()
    (tmp_path / "designed" / "config.json").write_text("{}")
    assert drafts.point_of_designed() is None
    for recipe, name in ((FAMILY["wide-2"], "wide-2"), (replace(FAMILY["wide-2"], seed=9), None)):
        (tmp_path / "designed" / "design.json").write_text(json.dumps({"design": asdict(recipe), "target": {}}))
        assert drafts.point_of_designed() == name

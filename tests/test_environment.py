"""What is installed is said once: the conda environment, the constraints and the licence agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest

import flashspec

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
PINNED = dict(line.split("==") for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if "==" in line)


def name(requirement):
    return re.split(r"[<>=!~\[; ]", requirement.strip())[0].lower()


def test_conda_has_the_projects_name_and_python_and_asks_pip_for_known_extras():
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


@pytest.mark.parametrize("package", PINNED)
def test_a_pinned_version_satisfies_what_pyproject_asks(package):
    specifiers = pytest.importorskip("packaging.specifiers")
    for need in [*PROJECT["dependencies"], *(need for extra in EXTRAS.values() for need in extra)]:
        if name(need) == package:
            wanted = specifiers.SpecifierSet(need.split(";")[0][len(name(need)) :].strip())
            assert PINNED[package] in wanted, f"{PINNED[package]} against {need}"


def test_importing_needs_the_core_alone():
    core, study = {"torch", "numpy", "safetensors", "tokenizers", "tqdm", "click"}, {"msgspec", "filelock"}
    assert {name(need) for need in PROJECT["dependencies"]} == core | study


def test_the_licence_is_there_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"]["text"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_the_same_wherever_it_stands():
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert PROJECT["version"] == flashspec.__version__ == newest


def test_make_help_lists_every_target_and_installs_extras_that_exist():
    told = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, flags=re.M))
    assert told == {"help", "lab", "book", "test", "smoke", "lint", "models", "notebooks", "gpu", "clean"}
    assert told == set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.M)[1].split())
    wanted = set(re.findall(r"\.venv/\.extra-(\w+)", MAKEFILE))
    assert wanted and wanted <= set(EXTRAS)


def test_a_commit_is_checked_by_the_versions_that_make_installs():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = set(re.findall(r"- id: (\S+)", text))
    assert {"check-added-large-files", "ruff-check", "ruff-format", "mypy", "nbstripout"} <= hooks
    assert "--maxkb=16384" in text
    assert re.search(r"ruff-pre-commit\n    rev: v(\S+)", text)[1] == PINNED["ruff"]
    assert re.search(r"nbstripout\n    rev: (\S+)", text)[1] == PINNED["nbstripout"]


def test_what_must_hold_before_a_merge_is_run_and_can_be():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    steps = re.search(r"for step in (.+); do", script.read_text())[1].split()
    assert steps[-1] == "test" and {"lint", "smoke", "book"} <= set(steps)

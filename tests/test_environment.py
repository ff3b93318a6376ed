"""What is installed is said once: the conda environment, the constraints and the licence agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name(requirement: str) -> str:
    """The package that a requirement asks for."""
    return re.split(r"[<>=!~\[; ]", requirement.strip())[0].lower()


def conda() -> tuple[str, list[str], list[str]]:
    """Name, conda packages and pip lines of environment.yml."""
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^( *)- (.+)$", text, flags=re.M)
    packages = [line for indent, line in lines if len(indent) == 2 and not line.endswith(":")]
    pip = [line for indent, line in lines if len(indent) > 2]
    return re.search(r"^name: (.+)$", text, flags=re.M)[1], packages, pip


def test_conda_has_the_projects_name_and_python() -> None:
    title, packages, _ = conda()
    assert title == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in packages


def test_conda_asks_pip_for_known_extras() -> None:
    _, _, pip = conda()
    asked = re.fullmatch(r"-e \.\[(.+)\]", pip[0])[1].split(",")
    assert set(asked) <= set(EXTRAS)
    assert {"book", "quantize"} <= set(asked)


def test_faiss_comes_once() -> None:
    _, packages, pip = conda()
    extras = re.fullmatch(r"-e \.\[(.+)\]", pip[0])[1].split(",")
    through_pip = [need for extra in extras for need in EXTRAS[extra] if "faiss" in need]
    assert [name(package) for package in packages if "faiss" in package] == ["faiss-gpu"]
    assert not through_pip


def test_every_extra_the_makefile_installs_exists() -> None:
    wanted = set(re.findall(r"\.venv/\.extra-(\w+)", (ROOT / "Makefile").read_text()))
    assert wanted
    assert wanted <= set(EXTRAS)


@pytest.mark.parametrize("line", [line for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if "==" in line])
def test_a_pinned_version_satisfies_what_pyproject_asks(line: str) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    package, version = line.split("==")
    for need in [*PROJECT["dependencies"], *(need for extra in EXTRAS.values() for need in extra)]:
        if name(need) == package:
            assert version in specifiers.SpecifierSet(need.split(";")[0][len(name(need)) :].strip()), f"{line} against {need}"


def test_importing_needs_the_core_alone() -> None:
    core, study = {"torch", "numpy", "safetensors", "tokenizers", "tqdm", "click"}, {"msgspec", "filelock"}
    assert {name(need) for need in PROJECT["dependencies"]} == core | study


def test_the_licence_is_there_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"]["text"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_the_same_wherever_it_stands() -> None:
    import flashspec

    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert PROJECT["version"] == flashspec.__version__ == newest


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    told = set(re.findall(r"^([a-z]+):.*## ", text, flags=re.M))
    assert told == {"help", "lab", "book", "test", "smoke", "lint", "models", "notebooks", "gpu", "clean"}
    assert told == set(re.search(r"^\.PHONY: (.+)$", text, flags=re.M)[1].split())


def test_a_commit_is_checked_by_the_versions_that_make_installs() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = set(re.findall(r"- id: (\S+)", text))
    assert {"check-added-large-files", "ruff-check", "ruff-format", "mypy", "nbstripout"} <= hooks
    assert "--maxkb=16384" in text
    pinned = dict(line.split("==") for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if "==" in line)
    assert re.search(r"ruff-pre-commit\n    rev: v(\S+)", text)[1] == pinned["ruff"]
    assert re.search(r"nbstripout\n    rev: (\S+)", text)[1] == pinned["nbstripout"]


def test_what_must_hold_before_a_merge_is_run_and_can_be() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    steps = re.search(r"for step in (.+); do", script.read_text())[1].split()
    assert steps[-1] == "test" and {"lint", "smoke", "book"} <= set(steps)

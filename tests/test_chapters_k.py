"""Any legal parameters give a page of the chapters on hierarchies and on everything together."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import shelf
import tiny
from pages import NOTEBOOKS, PAGES, page

pytest.importorskip("seaborn")

from flashspec.study import compare, race
from flashspec.study.notebooks import parameters
from flashspec.study.parameters import hints, type_name

CHAPTERS = {"09_hierarchies": "hispec_end_to_end", "10_all_together": "hispec_flash"}
OPTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "method": (2, ("draft_model", "lookup", "self_speculation", "hispec", "hispec_adaptive", "hispec_flash")),
    "head": (2, ("dense", "int8", "flash", "flash_int8")),
    "k": (2, (1, 2, 3)),
    "probes": (2, (2, 4)),
    "exit": (2, (1, 2)),
    "verify_exit": (2, (3, 4)),
    "interval": (2, (2, 4)),
    "finalize": (2, ("deferred", "eager")),
    "temperature": (2, (0.0, 0.7, 1.0)),
    "rule": (2, ("coupling", "speculative", "typical")),
    "kind": (1, ("code", "prose")),
}  # how many at most, and among which


def drawn(dice: random.Random) -> dict[str, Any]:
    """Legal parameters of a race at smoke size; one value comes alone, as papermill passes it."""
    found: dict[str, Any] = {}
    for name, (most, among) in OPTIONS.items():
        chosen = dice.sample(among, dice.randint(1, most))
        found[name] = chosen if len(chosen) > 1 or dice.random() < 0.5 else chosen[0]
    sizes = {"per_kind": dice.randint(1, 2), "repeats": 1, "screen": dice.randint(0, 2), "parts": dice.randint(0, 1)}
    return {**found, **sizes, "new_tokens": dice.randint(2, 6), "twins": dice.randint(0, 1), "depth": dice.choice([2, (1, 3, 9)])}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root: Path = tmp_path_factory.mktemp("shelf")
    pair = shelf.write_pair(root)
    return {"target": str(pair["target"]), "draft": str(pair["draft"]), "prompts": str(tiny.prompts_file(root, each=2))}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path))
    monkeypatch.setattr(compare, "DRAWS", 20)


@pytest.mark.parametrize("name", CHAPTERS)
@pytest.mark.parametrize("seed", range(4))
def test_drawn_parameter_sets_give_a_page(name: str, seed: int, home: dict[str, Any], capsys: Any) -> None:
    dice = random.Random(f"{name} {seed}")
    for _ in range(PAGES // 4):
        values = drawn(dice)
        scope = page(name, {**home, **values})
        assert len(scope["results"].rows) > 0, values


def test_a_page_that_asks_for_a_fixed_temperature_is_caught(home: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from flashspec.study import stages

    whole = stages.stages
    monkeypatch.setattr(stages, "stages", lambda frame: whole(frame).set_index("temperature").loc[[1.0]].reset_index())
    values = {**home, "per_kind": 1, "new_tokens": 4, "repeats": 1, "exit": 1, "verify_exit": 3, "k": 1, "screen": 0, "twins": 0}
    page("09_hierarchies", {**values, "temperature": (0.0, 1.0)})
    with pytest.raises(KeyError):
        page("09_hierarchies", {**values, "temperature": 0.0})


@pytest.mark.parametrize(("name", "preset"), CHAPTERS.items())
def test_a_chapter_declares_its_preset(name: str, preset: str) -> None:
    said = parameters(NOTEBOOKS / f"{name}.ipynb")
    meant = hints(race.Params)
    assert set(meant) | {"fresh"} <= set(said)
    assert race.Params(**{key: said[key].default for key in meant}) == race.PRESETS[preset]
    assert [type_name(said[key].kind) for key in meant] == [type_name(kind) for kind in meant.values()]

"""Any legal parameters give a page of the chapters on drafts, their design and the throughput model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import shelf
import tiny
from pages import NOTEBOOKS, PAGES, page

pytest.importorskip("seaborn")

from flashspec.study import EXPERIMENTS
from flashspec.study.notebooks import parameters
from flashspec.study.parameters import hints, type_name

CHAPTERS = {
    "06_drafts": ("race", "draft_throughput"),
    "07_designing_a_draft": ("parts", "draft_latency"),
    "08_throughput_model": ("race", "sweep_350"),
}
OPTIONS: dict[str, dict[str, tuple[int, tuple[Any, ...]]]] = {
    "race": {
        "method": (2, ("draft_model", "lookup", "self_speculation", "hispec")),
        "head": (2, ("dense", "int8", "flash")),
        "k": (2, (1, 2, 3)),
        "probes": (1, (2, 4)),
        "exit": (1, (1, 2)),
        "verify_exit": (1, (3, 4)),
        "interval": (1, (2, 4)),
        "finalize": (2, ("deferred", "eager")),
        "temperature": (2, (0.0, 0.7, 1.0)),
        "rule": (2, ("coupling", "speculative", "typical")),
        "kind": (1, ("code", "prose")),
        "parts": (1, (0, 1)),
        "per_kind": (1, (1, 2)),
        "screen": (1, (0, 1)),
    },
    "parts": {
        "piece": (2, ("step", "body", "head", "burst", "check")),
        "shape": (2, ("reference-shallow", "reference-draft")),
        "layers": (1, (0, 1, 2, 4)),
        "spread": (2, (1, 2)),
        "format": (1, ("bfloat16", "float32")),
        "head": (2, ("dense", "int8", "flash")),
        "probes": (1, (4, 16)),
        "rows": (2, (1, 3)),
        "past": (1, (4, 8)),
        "repeats": (1, (1, 3)),
    },
}  # how many at most, and among which
SINGLE = ("parts", "per_kind", "screen", "past", "repeats")


def drawn(dice: random.Random, options: dict[str, tuple[int, tuple[Any, ...]]]) -> dict[str, Any]:
    """Legal parameters at smoke size; one value comes alone, as papermill passes it."""
    found: dict[str, Any] = {}
    for name, (most, among) in options.items():
        chosen = dice.sample(among, dice.randint(1, most))
        found[name] = chosen if name not in SINGLE and (len(chosen) > 1 or dice.random() < 0.5) else chosen[0]
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root: Path = tmp_path_factory.mktemp("shelf")
    pair = shelf.write_pair(root)
    sizes = {"new_tokens": 4, "repeats": 1, "twins": 0, "texts": 1}
    return {"target": str(pair["target"]), "draft": str(pair["draft"]), "prompts": str(tiny.prompts_file(root, each=2)), **sizes}


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHSPEC_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield


@pytest.mark.parametrize("name", CHAPTERS)
@pytest.mark.parametrize("seed", range(4))
def test_drawn_parameter_sets_give_a_page(name: str, seed: int, home: dict[str, Any], capsys: Any) -> None:
    dice, kind = random.Random(f"{name} {seed}"), CHAPTERS[name][0]
    for _ in range(PAGES // 4):
        values = drawn(dice, OPTIONS[kind])
        scope = page(name, {**(home if kind == "race" else {}), **values})
        assert len(scope["results"].rows) > 0, values


def test_a_page_that_asks_for_a_fixed_temperature_is_caught(home: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from flashspec.study import predictions

    whole = predictions.curves
    monkeypatch.setattr(predictions, "curves", lambda frame: whole(frame).set_index("temperature").loc[[1.0]].reset_index())
    values = {**home, "per_kind": 1, "parts": 1, "k": 1, "head": "dense"}
    page("08_throughput_model", {**values, "temperature": (0.0, 1.0)})
    with pytest.raises(KeyError):
        page("08_throughput_model", {**values, "temperature": 0.0})


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_declares_its_preset(name: str) -> None:
    kind, preset = CHAPTERS[name]
    experiment, said = EXPERIMENTS[kind], parameters(NOTEBOOKS / f"{name}.ipynb")
    meant = hints(experiment.params)
    assert set(said) == {*meant, "fresh"}
    assert experiment.params(**{key: said[key].default for key in meant}) == experiment.preset(preset)
    assert [type_name(said[key].kind) for key in meant] == [type_name(kind) for kind in meant.values()]

"""How good a draft is by itself is what a loop over held-out text counts; other targets are made once."""

from dataclasses import replace

import pytest
import shelf
import tiny
import torch

from flashspec.cli.main import status
from flashspec.decoding.models import load
from flashspec.measure.prompts import load_prompts
from flashspec.models.rounded import rounded
from flashspec.study import family
from flashspec.train import design


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    pair = shelf.write_pair(root)
    return {**pair, "prompts": tiny.prompts_file(root, each=3), "root": root}


def test_a_row_is_what_a_loop_counts(home):
    pytest.importorskip("pandas")
    asked = family.EXPERIMENT.parse({**{name: str(home[name]) for name in ("target", "draft", "prompts")}, "texts": 2})
    rows = list(family.measure(asked))
    assert {(r.draft, r.kind) for r in rows} == {("draft", "code"), ("draft", "prose")}
    prompts = [p for p in load_prompts(home["prompts"], 2) if p.kind == "code"]
    models = load(home["target"], home["draft"], "float32", "cpu", "dense")
    model, loss, right = rounded(models.draft, "int8"), 0.0, 0  # as the study runs its drafts
    with torch.no_grad():
        for prompt in prompts:
            logits = model(torch.tensor([prompt.ids]))[0]
            for place, wanted in enumerate(prompt.ids[1:]):
                loss -= float(logits[place].log_softmax(-1)[wanted])
                right += int(logits[place].argmax()) == wanted
    row = rows[0]
    assert row.loss == pytest.approx(loss, rel=1e-4) and row.right == right
    assert row.positions == sum(len(p.ids) - 1 for p in prompts) and row.asked == 2 and 0 <= row.chosen <= 2
    assert [r.kind for r in family.measure(replace(asked, kind=("prose",)))] == ["prose"]
    with pytest.raises(ValueError, match="kind must be among code, prose"):
        list(family.measure(replace(asked, kind=("song",))))
    with pytest.raises(ValueError, match="texts must be at least 1"):
        replace(asked, texts=0)


def test_a_model_that_knows_a_text_finds_it(monkeypatch):
    prompts = [family.Prompt("code", (1, 2, n, n)) for n in (3, 4, 5)]
    table = {3: 0.0, 4: -1.0, 5: -2.0}
    monkeypatch.setattr(family, "mean_chance", lambda model, start, rest: table[rest[0]])
    assert [family.chooses(tiny.model(1), prompts, n) for n in range(3)] == [True, False, False]


def test_variants_are_made_once_and_differ(home, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.py"
    text.write_text("\n".join(f'def f{n}():\n    """{"one two three four five six seven " * 6}{n}"""' for n in range(60)))
    short = {name: replace(tuning, sequences=1, length=16) for name, tuning in design.VARIANTS.items()}
    monkeypatch.setattr(design, "VARIANTS", short)
    line = ["draft", "variants", "--folder", str(tmp_path / "made"), "--target", str(home["target"]), "--text", str(text)]
    for _ in range(2):
        assert status([*line, "--steps", "2"]) == 0
        digests = {name: (tmp_path / "made" / name / "digests.json").read_bytes() for name in design.VARIANTS}
    assert len({*digests.values(), (home["target"] / "digests.json").read_bytes()}) == 3
    assert {path.name for path in (tmp_path / "made").iterdir()} >= {"fine-tuned", "independent"}
    assert load(tmp_path / "made" / "independent", home["draft"], "float32").target.config.layers == 6

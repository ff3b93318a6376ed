"""Exit adapters on a frozen model raise the agreement of its exits, change no text and lie beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import shelf
import torch
from toys import PROMPT, random_model, run, text

import flashspec as fs
from flashspec.cli.main import status
from flashspec.decoding.generate import agreement
from flashspec.decoding.models import Models
from flashspec.models.exits import EXITS_FILE, ExitAdapter, load_exits, save_exits
from flashspec.models.folder import verify_digests
from flashspec.train.exits import ExitRecipe, default_layers, exit_agreement, rows_at, train_adapters


@pytest.fixture(scope="module")
def trained():
    """A model that turns its rows round above layer 3, text of its own, and adapters trained on it."""
    torch.manual_seed(0)
    model = random_model(3)
    for layer in model.layers[3:]:
        layer.mlp.down.weight.mul_(12.0)
    stream = torch.randint(0, 61, (6000,), generator=torch.Generator().manual_seed(1)).numpy()
    return model, train_adapters(model, stream, ExitRecipe((2, 4), rank=32, steps=80, sequences=2, length=64, rate=1e-2))


def test_training_raises_the_agreement(trained):
    model, adapters = trained
    ids = torch.randint(0, 61, (4, 64), generator=torch.Generator().manual_seed(2))
    before = exit_agreement(model, {n: ExitAdapter(model, 4) for n in adapters}, ids)
    after = exit_agreement(model, adapters, ids)
    assert all(after[n] > before[n] + 0.05 for n in adapters)


def test_an_untrained_adapter_is_the_shared_norm():
    model = random_model(0)
    rows = rows_at(model, torch.tensor([PROMPT]), (2,))[2]
    assert torch.allclose(ExitAdapter(model, 4)(rows), model.norm(rows))


@pytest.mark.filterwarnings("ignore:exit")
@pytest.mark.parametrize("method", ["self_speculation", "hispec", "hispec_flash"])
def test_adapters_raise_acceptance_and_change_no_text(trained, method):
    model, adapters = trained
    plain, fitted = Models(model), Models(model, exits=adapters)
    outs = [run(models, method, max_new_tokens=60, prompt=[i % 61 for i in range(20)]) for models in (plain, fitted)]
    assert outs[0].tokens == outs[1].tokens == text(plain, "baseline", max_new_tokens=60, prompt=[i % 61 for i in range(20)])
    if method == "self_speculation":
        kept = [agreement(out.events, 1) for out in outs]
        assert kept[1][0] / kept[1][1] > kept[0][0] / kept[0][1]


def test_adapters_are_stored_and_refused_for_another_model(trained, tmp_path):
    model, adapters = trained
    save_exits(adapters, tmp_path / EXITS_FILE)
    again = load_exits(tmp_path / EXITS_FILE, model)
    rows = torch.randn(3, 32)
    assert all(torch.equal(again[n](rows), adapters[n](rows)) for n in adapters)
    for other in (random_model(0, hidden=64), random_model(0, layers=4)):
        with pytest.raises(ValueError, match="an exit of another model"):
            load_exits(tmp_path / EXITS_FILE, other)


def test_the_command_trains_and_load_finds_them(tmp_path, capsys):
    folder = shelf.write_pair(tmp_path)["target"]
    source = Path(__file__)
    before, out = shelf.listing(folder), tmp_path / "out" / "mine"
    line = ["train", "exits", "--model", str(folder), "--exits", "1,3", "--rank", "8", "--exit-steps", "3", "--text", str(source)]
    assert status([*line, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "exit 1: agrees with the whole model on" in said and str(out) in said
    assert shelf.listing(folder) == before and {path.name for path in out.iterdir()} == {*before, EXITS_FILE}
    verify_digests(out)
    models = fs.load(str(out), None, dtype="float32")
    assert set(models.exits) == {1, 3}
    assert text(models, fs.hispec(1, 3), 0.7) == text(models, "baseline", 0.7)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["train", "exits"], "give the model to train exits for"),
        (["train", "target", "--rank", "4"], "go with `flashspec train exits`"),
        (["train", "exits", "--model", "/nowhere/at/all", "--out", "out"], "no checkpoint folder"),
    ],
)
def test_bad_lines_are_refused(line, word, capsys):
    assert status(line) == 2
    assert word in capsys.readouterr().err


def test_bad_recipes_are_refused(trained):
    model, _ = trained
    assert default_layers(16) == (2, 4) and default_layers(32) == (4, 8) and default_layers(5) == (1, 2)
    for call, message in [
        (lambda: ExitRecipe((4, 2)), "rising order"),
        (lambda: ExitRecipe((2,), rank=0), "rank must be at least 1"),
        (lambda: default_layers(2), "no room for two exits"),
        (lambda: ExitAdapter(model, 0), "rank of an exit adapter"),
        (lambda: train_adapters(model, torch.zeros(999).numpy(), ExitRecipe((9,))), "below the model's 6 layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

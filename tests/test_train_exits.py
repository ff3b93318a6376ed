"""Exit adapters on a frozen model raise the agreement of its exits, change no text and lie beside the weights."""

import json

import pytest
import shelf
import torch
from toys import PROMPT, random_model, run, text

import flashspec as fs
from flashspec.cli.main import status
from flashspec.decoding.generate import agreement
from flashspec.decoding.models import Models
from flashspec.models.exits import EXITS_FILE, ExitAdapter, load_exits, rows_at, save_exits
from flashspec.models.folder import verify_digests
from flashspec.train.exits import ExitRecipe, default_layers, exit_agreement, train_adapters

LONG = [i % 61 for i in range(20)]


@pytest.fixture(scope="module")
def trained():
    """A model that turns its rows round above layer 3, and adapters trained on text of its own."""
    torch.manual_seed(0)
    model = random_model(3)
    for layer in model.layers[3:]:
        layer.mlp.down.weight.mul_(12.0)
    stream = torch.randint(0, 61, (6000,), generator=torch.Generator().manual_seed(1)).numpy()
    return model, train_adapters(model, stream, ExitRecipe((2, 4), rank=32, steps=80, sequences=2, length=64, rate=1e-2))


def test_training_raises_the_agreement_of_what_was_the_shared_norm(trained):
    model, adapters = trained
    ids = torch.randint(0, 61, (4, 64), generator=torch.Generator().manual_seed(2))
    untrained = {n: ExitAdapter(model, 4) for n in adapters}
    before, after = exit_agreement(model, untrained, ids), exit_agreement(model, adapters, ids)
    assert all(after[n] > before[n] + 0.05 for n in adapters)
    rows = rows_at(model, torch.tensor([PROMPT]), (2,))[2]
    assert torch.allclose(untrained[2](rows), model.norm(rows))


@pytest.mark.filterwarnings("ignore:exit")
@pytest.mark.parametrize("method", ["self_speculation", "hispec", "hispec_flash"])
def test_adapters_raise_acceptance_and_change_no_text(trained, method):
    model, adapters = trained
    plain, fitted = Models(model), Models(model, exits=adapters)
    outs = [run(models, method, max_new_tokens=60, prompt=LONG) for models in (plain, fitted)]
    assert outs[0].tokens == outs[1].tokens == text(plain, "baseline", max_new_tokens=60, prompt=LONG)
    if method == "self_speculation":
        (kept, of), (more, all_) = (agreement(out.events, 1) for out in outs)
        assert more / all_ > kept / of


def test_adapters_are_stored_and_refused_for_another_model(trained, tmp_path):
    model, adapters = trained
    save_exits(adapters, tmp_path / EXITS_FILE)
    again, rows = load_exits(tmp_path / EXITS_FILE, model), torch.randn(3, 32)
    assert all(torch.equal(again[n](rows), adapters[n](rows)) for n in adapters)
    for other in (random_model(0, hidden=64), random_model(0, layers=4)):
        with pytest.raises(ValueError, match="an exit of another model"):
            load_exits(tmp_path / EXITS_FILE, other)


def test_the_command_trains_and_load_finds_them(folders, tmp_path, capsys):
    folder, out = folders["target"], tmp_path / "out" / "mine"
    before = shelf.listing(folder)
    line = ["train", "exits", "--model", str(folder), "--exits", "1,3", "--rank", "8", "--exit-steps", "3", "--text", __file__]
    assert status([*line, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "exit 1: agrees with the whole model on" in said and str(out) in said
    assert shelf.listing(folder) == before and {path.name for path in out.iterdir()} == {*before, EXITS_FILE}
    verify_digests(out)
    models = fs.load(str(out), None, dtype="float32")
    assert set(models.exits) == {1, 3}
    assert text(models, fs.Method(exits=(1, 3), k=2), 0.7) == text(models, "baseline", 0.7)


@pytest.mark.parametrize(("depth", "layers"), [(16, (2, 4)), (32, (4, 8)), (5, (1, 2)), (2, None)])
def test_exits_lie_at_an_eighth_and_a_quarter(tmp_path, depth, layers):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": depth}))
    if layers:
        assert default_layers(tmp_path) == layers
    else:
        with pytest.raises(ValueError, match="no room for two exits"):
            default_layers(tmp_path)

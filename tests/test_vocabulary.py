"""Models of one tokenizer whose embeddings are padded differently decode as if none were padded; others are refused."""

from dataclasses import replace

import pytest
import shelf
import tiny
import torch
from torch import nn

from flashspec import Models, Sampling, generate, load

PROMPT = [3, 1, 4, 1, 5]
EXTRA = {"target": {"target": 24}, "draft": {"draft": 24}, "both": {"target": 40, "draft": 8}}


def padded(model, rows):
    for module in (model.embed, model.head):
        weight = module.weight.detach()
        module.weight = nn.Parameter(torch.cat([weight, 50 * weight[:rows]])[: tiny.VOCAB + rows])
    model.config = replace(model.config, vocab_size=tiny.VOCAB + rows)
    return model


def written(home, extra):
    home.mkdir(parents=True, exist_ok=True)
    folders = shelf.write_pair(home)
    for role, rows in extra.items():
        padded(tiny.pair().model(role), rows).save(folders[role], "float32")
        (folders[role] / "digests.json").unlink(missing_ok=True)
        (folders[role] / "tokenizer.json").write_bytes((home / "tokenizer.json").read_bytes())
    return folders


def pair(folders):
    return load(folders["target"], folders["draft"], dtype="float32", device="cpu")


def text(models, method, temperature=0.0):
    options = {"max_new_tokens": 20, "stop": ()} | ({"probes": 4} if method == "flash" else {})
    return generate(models, PROMPT, method, Sampling(temperature, seed=3), **options).tokens


@pytest.mark.parametrize("who", EXTRA)
def test_padding_of_different_sizes_changes_no_text(who, tmp_path):
    plain, cut = pair(written(tmp_path / "plain", {})), pair(written(tmp_path / "padded", EXTRA[who]))
    size = tiny.VOCAB + min(EXTRA[who].get(role, 0) for role in ("target", "draft"))
    assert {model.config.vocab_size for model in (cut.target, cut.draft)} == {size} and plain.cut == ()
    for temperature in (0.0, 0.7):
        texts = {method: text(cut, method, temperature) for method in ("baseline", "dense", "flash")}
        assert texts["dense"] == texts["flash"] == texts["baseline"]
        if who != "both":
            assert texts["baseline"] == text(plain, "baseline", temperature)


def test_the_control_padding_that_is_not_cut_is_written(tmp_path):
    alone = load(written(tmp_path, EXTRA["target"])["target"], None, dtype="float32", device="cpu")
    assert max(text(alone, "baseline")) >= tiny.VOCAB


def test_a_stored_head_of_the_whole_weight_is_left_aside(tmp_path):
    folders = written(tmp_path, EXTRA["draft"])
    load(folders["draft"], folders["draft"], dtype="float32", device="cpu").head("draft", "flash").save(folders["draft"])
    cut = pair(folders)
    assert cut.cut == ("draft",) and cut.head("draft", "flash").vocab_size == tiny.VOCAB


def test_a_model_that_transformers_reads_is_cut_too(tmp_path):
    pytest.importorskip("transformers")
    from flashspec.models.adapter import Adapter

    folders, plain = written(tmp_path / "padded", EXTRA["target"]), pair(written(tmp_path / "plain", {}))
    for hidden in (True, False):
        model = Adapter.load(folders["target"], "float32")
        model.head_weight = model.head_weight if hidden else None
        model.cut_vocabulary(tiny.VOCAB)
        assert model.width == (model.config.hidden if hidden else tiny.VOCAB)
        assert text(Models(model, plain.draft), "dense") == text(plain, "baseline")


def test_rows_without_a_tokenizer_to_explain_them_and_fewer_than_it_has_ids_are_refused(tmp_path):
    folders, short = written(tmp_path / "long", EXTRA["target"]), written(tmp_path / "short", {"draft": -20})
    (folders["target"] / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"different vocabularies \(512 and 536 ids\); use two models that share one tokenizer"):
        pair(folders)
    with pytest.raises(ValueError, match="the draft has rows for 492 ids and its tokenizer knows 512.*copy"):
        pair(short)

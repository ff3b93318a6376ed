"""The public FlashHead checkpoint layout: read from a checkpoint made here, refused where it is wrong."""

import json
from functools import partial

import pytest
import shelf
import torch
from safetensors.torch import save_file
from shelf import normal, refused

from flashspec import Transformer
from flashspec.heads import FlashHead, Origin, head_named, is_public, load_public

VOCAB, WIDTH, CLUSTERS = 96, 32, 12
weight, centroids = partial(normal, VOCAB, WIDTH, seed=1), partial(normal, 1, 1, WIDTH, CLUSTERS, seed=2)


def read(folder):
    return load_public(folder, weight())


def fabricate(folder, nested=False, tensors=None, **options):
    """A checkpoint folder in the public layout; cluster k holds the ids that leave k over K."""
    switches = {"flash_head_cache_dir": "flash_head_assets", "vocab_size": VOCAB, **options}
    raw = {"architectures": ["FlashHeadQwen3ForCausalLM"], "model_type": "qwen3"}
    raw |= {"text_config": switches} if nested else switches
    (folder / "flash_head_assets").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    plain = {"centroids": centroids(), "cluster_assignments": torch.arange(VOCAB) % CLUSTERS}
    save_file({**plain, **(tensors or {})}, folder / "flash_head_assets" / "clustering_cache.safetensors")
    return folder


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, WIDTH, CLUSTERS), (WIDTH, CLUSTERS)])
def test_a_public_checkpoint_is_read(tmp_path, nested, shape):
    tensors = {"centroids": centroids().reshape(shape)}
    head = read(fabricate(tmp_path, nested, tensors, n_probes=5, flash_head_special_token_ids=[3, 90]))
    assert is_public(tmp_path)
    assert (head.probes, head.clusters.count, head.clusters.size, head.plan.always) == (5, CLUSTERS, 8, (3, 90))
    assert head.clusters.members[7].tolist() == list(range(7, VOCAB, CLUSTERS))
    assert torch.equal(head.clusters.centroids, centroids()[0, 0].T)
    save_file({"centroids": centroids()}, cache := tmp_path / "flash_head_assets" / "clustering_cache.safetensors")
    refused("not a FlashHead cache", read, tmp_path)
    cache.unlink()
    refused("assets included", read, tmp_path, error=FileNotFoundError)


def naive(row, probes):
    columns = centroids()[0, 0]
    best = (row @ (columns / columns.norm(dim=0))).argsort(descending=True)[:probes].tolist()
    ids = [v for v in range(VOCAB) if v % CLUSTERS in best]
    return ids[int((weight()[ids] @ row).argmax())]


def test_it_says_what_the_layout_says(tmp_path):
    head = read(fabricate(tmp_path, n_probes=3))
    scores = head(rows := normal(40, WIDTH, seed=3))
    mine = scores.pick(scores.logits.argmax(1)).tolist()
    assert mine == [naive(row, 3) for row in rows]
    assert mine != [naive(row, 1) for row in rows]
    head = read(fabricate(tmp_path / "other", flash_head_special_token_ids=7))
    assert (head.probes, head.plan.always) == (1, (7,)), "one cluster in sixteen, and one special id may stand alone"


BROKEN = [
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB - 1) % CLUSTERS}}, "are of 95 ids with centroids"),
    ({"tensors": {"centroids": torch.zeros(1, 1, WIDTH + 8, CLUSTERS)}}, "centroids have the shape"),
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB) % 11}}, "clusters of 8 expected"),
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB) % 13}}, "cluster numbers run from 0 to 11"),
    ({"n_probes": 13}, "at most the 12 clusters"),
    ({"n_probes": 0}, "n_probes holds 0, expected int >= 1"),
    ({"flash_head_special_token_ids": [VOCAB]}, "ids run from 0 to 95"),
    ({"flash_head_cache_dir": None}, "not a checkpoint with a FlashHead"),
]


@pytest.mark.parametrize(("case", "words"), BROKEN)
def test_a_public_checkpoint_that_cannot_be_is_refused(tmp_path, case, words):
    refused(words, read, fabricate(tmp_path, **case))


def test_the_model_of_a_public_checkpoint_is_read_with_its_head(tmp_path):
    model = shelf.model(2)
    model.save(tmp_path, "float32")
    assert not is_public(tmp_path)
    found, assets = FlashHead.build(model.head_weight).clusters, tmp_path / "assets"
    assets.mkdir()
    parts = {"centroids": found.centroids.T.contiguous(), "cluster_assignments": found.assignments}
    save_file(parts, assets / "clustering_cache.safetensors")
    raw = json.loads((tmp_path / "config.json").read_text()) | {"flash_head_cache_dir": "assets", "n_probes": 3}
    raw["architectures"] = [f"FlashHead{name}" for name in raw["architectures"]]
    for names in ({}, {"architectures": None, "model_type": "flash_head_qwen3"}):
        (tmp_path / "config.json").write_text(json.dumps(raw | names))
        again = Transformer.load(tmp_path)
        assert torch.equal(again.head_weight, model.head_weight) and again.config.family == "qwen3"
        assert head_named("flash", Origin(again.head_weight, again.norm, tmp_path)).probes == 3
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["FlashHeadGPT9ForCausalLM"]}))
    refused("architecture 'GPT9ForCausalLM' is not supported", Transformer.load, tmp_path)

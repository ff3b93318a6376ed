"""FlashHead on disk: it comes back as it was, and only beside the weight it was built from."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from flashspec.decoding.models import SHIPPED
from flashspec.heads import FlashHead
from flashspec.heads.storage import FILE, KEY, read, weight_digest, write
from flashspec.train import reference


def weight(vocab: int = 300, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocab, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def built() -> FlashHead:
    return FlashHead.build(weight(), cluster_size=7, probes=5, always=(3, 299), seed=2, selection="sample", temperature=0.5)


def same(one: FlashHead, other: FlashHead) -> bool:
    if one.plan != other.plan:
        return False
    plain = [torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one.table, other.table, strict=True)]
    return all(plain)


def test_a_head_with_second_homes_comes_back_as_it_was(tmp_path):
    both = FlashHead.build(weight(), cluster_size=7, probes=5, homes=2, metric="euclidean", stage1="bf16")
    both.save(tmp_path)
    assert same(FlashHead.load(tmp_path, weight()), both)
    assert not same(both, FlashHead.build(weight(), cluster_size=7, probes=5, homes=1, metric="euclidean", stage1="bf16"))


@pytest.mark.parametrize("into", ["", "head.safetensors"])
def test_a_saved_head_comes_back_as_it_was(tmp_path, into):
    built().save(tmp_path / into)
    assert [p.name for p in tmp_path.iterdir()] == [into or FILE]
    assert same(FlashHead.load(tmp_path / into, weight()), built())
    assert not same(FlashHead.load(tmp_path / into, weight()).with_probes(6), built())


def test_a_head_built_in_bfloat16_loads_beside_the_same_weight_in_float32(tmp_path):
    built().save(tmp_path)
    wide = FlashHead.load(tmp_path, weight().float())
    assert torch.equal(wide.clusters.members, built().clusters.members)
    assert wide.table.blocks.dtype == torch.float32


def test_a_drafts_flash_head_is_calibrated_with_its_default_probes_and_scored_as_it_ships(tmp_path):
    model, stream = tiny.model(2), np.random.default_rng(0).integers(0, tiny.VOCAB, 4000)
    model.save(tmp_path, "float32")
    reference.add_flash_head(tmp_path, stream, windows=4)
    head = FlashHead.load(tmp_path, model.head_weight, model.norm)
    plain = FlashHead.build(model.head_weight, model.norm)
    assert head.probes == plain.probes and torch.equal(head.clusters.members, plain.clusters.members)
    assert 0 < len(head.plan.always) <= 64 and plain.plan.always == ()
    shipped, half = reference.head_scores(tmp_path, stream, windows=4)
    assert (shipped["plan"], shipped["probes"], half["probes"]) == ("as shipped", head.probes, head.probes // 2)
    assert 0 < half["agreement"] <= shipped["agreement"] <= 1 and half["scored_share"] < shipped["scored_share"]


@pytest.mark.parametrize("name", ["narrow", "shallow"])
def test_the_shipped_flash_heads_probe_one_cluster_in_sixteen_and_their_cards_say_so(name):
    tensors, facts = read(SHIPPED / name / FILE, KEY)
    card = (SHIPPED / name / "README.md").read_text()
    about = json.loads(card[card.index("{") : card.rindex("}") + 1])["held_out"]["flash_head"]
    assert facts["plan"]["probes"] == about[0]["probes"] == len(tensors["members"]) / 16
    assert about[0]["plan"] == "as shipped" and about[1]["agreement"] < about[0]["agreement"]


def nudged() -> torch.Tensor:
    other = weight()
    other[5, 5] *= 2
    return other


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (weight(vocab=301), "vocab_size 300, but this weight has 301"),
        (weight(width=40), "hidden 32, but this weight has 40"),
        (weight(seed=1), "another weight of this shape"),
        (nudged(), "another weight of this shape"),
    ],
)
def test_a_head_beside_another_weight_is_refused(tmp_path, other, words):
    built().save(tmp_path)
    with pytest.raises(ValueError, match=words):
        FlashHead.load(tmp_path, other)


def spoilt(tmp_path, members=None, centroids=None, **plan):
    """A file that another program wrote: of the right weight, with something in it that cannot be."""
    built().save(tmp_path)
    tensors, facts = read(tmp_path / FILE, KEY)
    tensors |= {name: made(tensors[name]) for name, made in (("members", members), ("centroids", centroids)) if made}
    write(tmp_path / FILE, KEY, tensors, {**facts, "plan": facts["plan"] | plan})
    return FlashHead.load(tmp_path, weight())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": lambda found: found.clone().fill_(3)}, "lists each of the 300 ids once, but this one does not"),
        ({"members": lambda found: found[:-1]}, "lists each of the 300 ids once, but this one does not"),
        ({"members": lambda found: found + 1}, "lists each of the 300 ids once, but this one does not"),
        ({"centroids": lambda found: found[:-1]}, "no float32 centroid for each of its 43 clusters"),
        ({"centroids": lambda found: found[:, :-1].contiguous()}, r"300 ids with centroids \[43, 31\], not of 43 clusters"),
        ({"probes": 44}, "at most the 43 clusters of this head, got 44"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"always": [300]}, "always holds id 300, but this head's ids run from 0 to 299"),
    ],
)
def test_clusters_and_plans_that_cannot_be_are_refused_in_one_sentence(tmp_path, changes, words):
    assert same(spoilt(tmp_path), built())
    with pytest.raises(ValueError, match=words) as refused:
        spoilt(tmp_path, **changes)
    assert "\n" not in str(refused.value)


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="FlashHead.build"):
        FlashHead.load(tmp_path, weight())
    built().save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or not a safetensors"):
        FlashHead.load(tmp_path, weight())
    save_file({"members": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="not of a FlashHead"):
        FlashHead.load(tmp_path, weight())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    built().save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def torn(tensors: dict, path: object, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        built().with_probes(6).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_the_digest_tells_rows_apart_and_not_number_formats():
    assert weight_digest(weight()) == weight_digest(weight().float())
    assert weight_digest(weight()) != weight_digest(weight().flip(0))

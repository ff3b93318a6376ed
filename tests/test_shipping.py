"""What ships of the family: a whole draft that loads and is frozen, and records that say what a live decode counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shelf
import tiny
import torch

from flashspec.cli.main import status
from flashspec.decoding.generate import generate
from flashspec.decoding.method import Method
from flashspec.decoding.models import REFERENCE, SHIPPED, load
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import record
from flashspec.models.family import DESIGNED
from flashspec.models.folder import verify_digests
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY, Sampling
from flashspec.study.drafts import point_of_designed
from flashspec.study.family import accepted, records
from flashspec.theory import replayed_all
from flashspec.train import reference as shipping

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    found = shelf.write_pair(tmp_path)
    tiny.prompts_file(tmp_path, each=3)
    return found


def test_shipped_models_stay_below_the_limit() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 92_000_000
    assert max(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= 16 << 20


@pytest.mark.parametrize("name", sorted(REFERENCE["draft"].values()))
def test_a_shipped_draft_has_the_same_logits_in_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if not (SHIPPED / name).exists():
        pytest.skip(f"no draft {name} ships")
    ids = torch.tensor([load_prompts(None, 1)[0].ids[:48]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED / name, dtype=torch.float32)
    with torch.no_grad():
        found = theirs(ids).logits
        assert torch.allclose(Transformer.load(SHIPPED / name, dtype="float32")(ids), found, atol=1e-4)
        assert not torch.allclose(Transformer.load(SHIPPED / name, dtype="float32")(ids.flip(1)), found, atol=1e-4)  # the control


@pytest.mark.skipif(not (SHIPPED / DESIGNED).exists(), reason="no designed draft ships")
def test_the_designed_draft_is_a_point_of_the_family_ready_to_serve() -> None:
    folder = SHIPPED / DESIGNED
    verify_digests(folder)
    told = json.loads((folder / "speculative.json").read_text())
    assert told.pop("num_speculative_tokens") >= 1
    assert told == {"method": "draft_model", "model": "flashspec/data/designed"}
    assert all((folder / name).exists() for name in ("README.md", "curve.jsonl", "tokenizer.json", "flash_head.safetensors"))
    assert point_of_designed() in {path.name for path in (ROOT / "book" / "results" / "family").iterdir()}


@pytest.mark.parametrize("k", [1, 3])
def test_a_record_counts_what_a_live_decode_counts(pair: dict[str, Path], tmp_path: Path, k: int) -> None:
    family = tmp_path / "points"
    family.mkdir()
    (family / "point").symlink_to(pair["draft"])
    line = ["draft", "record", "--folder", str(family), "--out", str(tmp_path / "family"), "--target", str(pair["target"])]
    assert status([*line, "--prompts", str(tmp_path / "prompts.json"), "--new-tokens", "16"]) == 0
    found = tmp_path / "family" / "point"
    assert {path.name for path in found.iterdir()} == {"config.json", "digests.json", "proposals.json"}
    models = load(pair["target"], pair["draft"], "float32", "cpu", "dense")
    prompts = load_prompts(tmp_path / "prompts.json", 2)
    live = [generate(models, list(p.ids), Method("model", k=k), GREEDY, max_new_tokens=16, stop=()).stats for p in prompts]
    counts = replayed_all(accepted(found), k)
    assert (counts.rounds, counts.accepted) == (sum(s.rounds for s in live), sum(s.accepted for s in live))
    line = records(k, tmp_path).loc["point"]
    assert line["TAR"] == pytest.approx(sum(s.emitted for s in live) / counts.rounds)
    assert line["layers"] == models.draft.config.layers and line["body"] == models.draft.config.body_parameters
    assert records(k, tmp_path / "nowhere").empty


def test_a_record_needs_its_targets_own_trace_and_shared_noise(pair: dict[str, Path], tmp_path: Path) -> None:
    prompts = load_prompts(tmp_path / "prompts.json", 1)
    for name, sampling, said in (
        ("draft", GREEDY, "recorded from another target"),
        ("target", Sampling(1.0, rule="speculative"), "not under speculative"),
    ):
        trace = record(load(pair[name], None, "float32", "cpu", "dense"), prompts, sampling, 4)
        with pytest.raises(ValueError, match=said):
            shipping.record_point(pair["draft"], pair["target"], trace, tmp_path / "out")
        assert not (tmp_path / "out").exists()

"""The wall-clock experiments run on tiny models, keep their columns and refuse nonsense; counts repeat exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny
import torch

from flashspec.model.checkpoint import save_transformer
from flashspec.study.experiments import draft_step, end_to_end, peers, projection


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> end_to_end.Params:
    root = tmp_path_factory.mktemp("pair")
    models = tiny.pair()
    save_transformer(models.target, root / "target", "float32")
    save_transformer(models.draft, root / "draft", "float32")
    prompts = tiny.prompts_file(root)
    return replace(
        end_to_end.SMOKE, target=str(root / "target"), drafts=(str(root / "draft"),), prompts=str(prompts), probes=(8,),
        dtype="float32", temperatures=(0.0, 1.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(params: end_to_end.Params) -> list[end_to_end.Row]:
    return list(end_to_end.measure(params))


def test_end_to_end_has_a_row_for_every_entry_and_kind(rows: list[end_to_end.Row]) -> None:
    coupling = [r for r in rows if r.rule == "coupling"]
    names = {(r.method, r.finalize, r.k) for r in coupling}
    assert names == {("baseline", "deferred", 0), *((m, f, 2) for m in ("dense", "flash") for f in ("eager", "deferred"))}
    assert len(coupling) == 2 * 5 * 2 and {r.kind for r in rows} == {"code", "prose"}
    assert {(r.temperature, r.rule) for r in rows} == {(0.0, "coupling"), (1.0, "coupling"), (1.0, "speculative")}


def test_all_coupled_texts_and_their_twins_are_the_baselines(rows: list[end_to_end.Row]) -> None:
    for temperature in (0.0, 1.0):
        for kind in ("code", "prose"):
            same = [r for r in rows if (r.temperature, r.kind, r.rule) == (temperature, kind, "coupling")]
            assert len({r.text_digest for r in same}) == 1 and {r.twin_digest for r in same} == {same[0].text_digest}
            assert {r.divergence_at for r in same} == {None}
    assert {r.twin_digest for r in rows if r.rule == "speculative"} == {""}


def test_counts_add_up_and_parts_are_positive(rows: list[end_to_end.Row]) -> None:
    for row in rows:
        assert row.emitted == 8 * row.prompts and row.seconds > 0 and row.draft_seconds > 0
        if row.method != "baseline":
            assert row.emitted == row.accepted + row.rounds and row.check_seconds > 0
            eager = row.finalize == "eager"
            assert 0 <= row.rounds * (1 + eager) - row.forwards <= 2 * eager * row.prompts


def test_counts_of_a_second_run_are_equal(params: end_to_end.Params, rows: list[end_to_end.Row]) -> None:
    counted = ("draft", "method", "finalize", "temperature", "rule", "k", "kind", *end_to_end.COUNTS, "text_digest")
    small = replace(params, temperatures=(1.0,), rules=("coupling",))
    again = [tuple(getattr(r, c) for c in counted) for r in end_to_end.measure(small)]
    assert again == [tuple(getattr(r, c) for c in counted) for r in rows if r.temperature == 1.0 and r.rule == "coupling"]


def test_a_divergent_text_gets_a_certificate(params: end_to_end.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an entry whose text is changed is not passed over."""
    honest = end_to_end.contest

    def lying(*args: object) -> Iterator:
        for record in honest(*args):  # type: ignore[arg-type]
            wrong = (record.tokens[0] + 1) % tiny.VOCAB
            yield record._replace(tokens=(wrong, *record.tokens[1:])) if record.entry.startswith("flash") else record

    monkeypatch.setattr(end_to_end, "contest", lying)
    found = list(end_to_end.measure(replace(params, temperatures=(0.0,))))
    flash, dense = ([r for r in found if r.method == m] for m in ("flash", "dense"))
    assert {r.divergence_at for r in flash} == {0} and all(r.gap > 4 * r.noise for r in flash)
    assert {r.divergence_at for r in dense} == {None}


def test_points_cover_the_settings_once(params: end_to_end.Params) -> None:
    points = end_to_end.points(end_to_end.Params(temperatures=(0.0, 0.7, 1.0)))
    assert len(points) == 2 * (1 + 2 * 2) == len(set(points))
    assert [len(end_to_end.settings(p)) for p in points] == [1] * len(points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (0,)}, "ks must be at least 1, got 0"),
        ({"methods": ("magic",)}, "methods must be among dense, int8"),
        ({"finalizes": ("later",)}, "finalize must be one of"),
        ({"temperatures": (-1.0,)}, "temperature must be 0"),
        ({"rules": ("luck",)}, "rule 'luck' is unknown"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"ks": ()}, "ks must be at least 1, got none"),
    ],
)
def test_end_to_end_refuses_nonsense_in_words(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        end_to_end.Params(**changes)


def test_projection_times_every_head_and_flash_scores_fewer_rows() -> None:
    rows = list(projection.measure(projection.SMOKE))
    assert {(r.head, r.probes) for r in rows} == {("dense-bf16", 0), ("dense-fp32", 0), ("flash", 64)}
    dense, flash = (next(r for r in rows if r.head == h) for h in ("dense-bf16", "flash"))
    assert dense.rows_scored == dense.vocab == 16384 and flash.rows_scored == 1024 + 64 * 16
    assert dense.bytes == 16384 * 256 * 2 and flash.bytes == 2048 * 256 * 2
    assert all(r.seconds > 0 and r.bandwidth > 0 for r in rows) and {r.repeat for r in rows} == {0, 1, 2}


def test_draft_step_times_whole_and_parts() -> None:
    rows = list(draft_step.measure(draft_step.SMOKE))
    assert {(r.shape, r.layers, r.head) for r in rows} == {("reference-shallow", 1, "dense"), ("reference-shallow", 1, "flash")}
    assert all(min(r.body_seconds, r.head_seconds, r.step_seconds) > 0 for r in rows)
    deeper = list(draft_step.measure(replace(draft_step.SMOKE, depths=(2,), repeats=1)))
    flat, deep = (next(r for r in found if r.head == "flash") for found in (rows, deeper))
    assert {r.layers for r in deeper} == {2} and deep.bytes > flat.bytes


@pytest.mark.parametrize("kind", [projection.Params, draft_step.Params])
def test_unknown_shapes_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="shape 'gpt9' is not known"):
        kind(shapes=("gpt9",))


def test_a_body_leaves_the_reader_where_it_was() -> None:
    draft = draft_step.prepare("reference-shallow", 0, draft_step.SMOKE)
    first, second = draft.body().clone(), draft.body().clone()
    assert torch.equal(first, second) and draft.reader.seen == draft_step.SMOKE.past


def test_peers_write_our_text_in_float32(params: end_to_end.Params) -> None:
    pytest.importorskip("transformers")
    wanted = replace(peers.SMOKE, target=params.target, draft=params.drafts[0], prompts=params.prompts, repeats=2)
    rows = list(peers.measure(wanted))
    assert {(r.engine, r.mode, r.k) for r in rows} == {
        (engine, mode, k) for engine in ("flashspec", "transformers") for mode, k in (("plain", 0), ("assisted", 2))
    }
    for number in (0, 1):
        same = [r for r in rows if r.prompt == number]
        assert len({r.text_digest for r in same} | {r.twin_digest for r in same}) == 1
        assert {r.emitted for r in same} == {8} and {r.divergence_at for r in same} == {None}


def test_experiments_are_registered() -> None:
    from flashspec.study import EXPERIMENTS

    for name in ("projection", "draft_step", "end_to_end", "peers"):
        assert EXPERIMENTS[name].name == name and EXPERIMENTS[name].measured
        assert EXPERIMENTS[name].preset("smoke")

"""Scores and parts follow the events; measuring leaves the stages ready."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from flashspec.decoding.cascade import decode
from flashspec.decoding.method import METHODS, build, method_named
from flashspec.decoding.state import Event, Limits
from flashspec.measure import clock, overhead
from flashspec.measure.contest import Decoding, Entry, texts
from flashspec.measure.levels import stage_costs
from flashspec.measure.parts import prepare
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.score import Score, score
from flashspec.sampling import Sampling

PROMPT = [5, 77, 130, 9, 200, 31]
WARM = Sampling(1.0, seed=3)
PROBED: dict[str, Any] = {"probes": 8}


@pytest.fixture(scope="module")
def models() -> Any:
    return tiny.pair()


def stages(models: Any, name: str, sampling: Sampling = WARM, **changes: Any) -> list:
    return build(method_named(name, changes), models, sampling, 128)


def events_of(models: Any, name: str, **changes: Any) -> tuple[list[Event], list, int]:
    used = stages(models, name, **changes)
    steps = list(decode(used, PROMPT, Limits(40, finalize=changes.get("finalize", "deferred"))))
    return [e for s in steps for e in s.events], used, sum(len(s.tokens) for s in steps)


def test_eager_costs_one_forward_a_round_more_and_the_score_says_so(models: Any) -> None:
    eager = score(*events_of(models, "dense", finalize="eager"))
    deferred = score(*events_of(models, "dense", finalize="deferred"))
    rounds = deferred.forwards
    assert eager.forwards == 2 * rounds - 1 and eager.emitted == deferred.emitted == 40
    assert eager.bytes > deferred.bytes


def test_plain_decoding_reads_the_body_and_the_head_once_a_token(models: Any) -> None:
    events, used, emitted = events_of(models, "baseline")
    found = score(events, used, emitted)
    layers = models.target.config.layers
    assert found.forwards == 40 and found.layer_tokens == layers * (len(PROMPT) + 39)
    body = sum(p.nbytes for p in models.target.layers.parameters())
    assert found.bytes == pytest.approx(40 * (body + models.target.head_weight.nbytes), rel=0.02)


def test_a_flash_draft_reads_fewer_bytes_than_a_dense_one(models: Any) -> None:
    burst = Event(0, 0, 0, 4, 4)
    dense, flash = stages(models, "dense"), stages(models, "flash", probes=4)
    assert score([burst], flash, 4).bytes < score([burst], dense, 4).bytes
    assert score([burst], flash, 4).flops < score([burst], dense, 4).flops


def test_a_shared_trunk_is_not_counted_twice(models: Any) -> None:
    events, used, emitted = events_of(models, "self_speculation", exits=(2,))
    found = score(events, used, emitted)
    below, above = (sum(e.rows for e in events if e.stage == i) for i in (0, 1))
    assert found.layer_tokens == 2 * below + (models.target.config.layers - 2) * above


def test_scores_add() -> None:
    assert Score(1, 2, 3, 4, 2) + Score(1, 2, 3, 4, 2) == Score(2, 4, 6, 8, 4)


def test_parts_are_measured_for_two_stages_at_most(models: Any) -> None:
    with pytest.raises(ValueError, match="got 3 stages"):
        prepare(lambda: stages(models, "hispec"), PROMPT, [])


def test_costs_of_a_hierarchy_leave_nothing_out(models: Any) -> None:
    used = stages(models, "hispec")
    costs = stage_costs(used, list(range(1, 40)), [2, 5], clock.Plan(3, 1))
    assert len(costs.checks) == 2 and min(costs.draft, costs.head, *costs.checks) > 0 and costs.draft > costs.head
    fresh = [t for step in decode(stages(models, "hispec"), PROMPT, Limits(12)) for t in step.tokens]
    assert [t for step in decode(used, PROMPT, Limits(12)) for t in step.tokens] == fresh


@pytest.mark.parametrize("name", ["baseline", "dense", "flash"])
def test_the_timed_round_is_the_decodes_own(models: Any, name: str) -> None:
    """The bench writes behind a text what a decode writes there, again and again, and something else behind another."""
    options = PROBED if name == "flash" else {}

    def written(text: list[int]) -> list[int]:
        bench = prepare(lambda: stages(models, name, **options), PROMPT, text)
        for _ in range(2):
            bench.burst()
            bench.step()
            if len(bench.stages) > 1:
                bench.check()
        return bench.state.tokens[bench.start : bench.state.length].tolist()

    behind = next(decode(stages(models, name, **options), [*PROMPT, 4, 5, 6], Limits(12)))
    assert written([4, 5, 6]) == behind.tokens != written([6, 5, 4])


def test_walks_through_memory_are_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(clock, "now", lambda: next(ticks))
    walk = overhead.Walk()
    assert walk.apart(lambda: None) == 1
    assert walk.apart(walk) == walk.apart(lambda: (walk(), walk())) - 1 == 2  # a walk's own second is gone, asking for it is not
    assert overhead.loop_overhead(2) >= 0 and overhead.loop_overhead(1) >= 0


def test_a_timed_decode_is_recorded_as_the_untimed_one_writes(models: Any) -> None:
    entries = [Entry(name, METHODS[name], WARM) for name in ("baseline", "dense", "self_speculation")]
    records = [Decoding(models, entry, Prompt("code", (1, 2, 3)), 10).record() for entry in entries]
    assert len({r.tokens for r in records}) == 1 and all(r.seconds > 0 for r in records)
    assert all(len(r.tokens) == r.stats.emitted == r.score.emitted == 10 for r in records)
    assert texts(models, entries[0], [Prompt("code", (1, 2, 3))], 10) == [records[0].tokens]
    assert texts(models, entries[0], [Prompt("code", (4,))], 10) != [records[0].tokens]


def test_a_timed_decode_ignores_stop_tokens(models: Any) -> None:
    entry = Entry("baseline", METHODS["baseline"], Sampling())
    config = models.target.config
    assert config.eos == () and len(list(Decoding(models, entry, Prompt("code", (1,)), 15)())) == 15


def test_prompts_are_read_by_kind_and_missing_files_are_named(tmp_path: Any) -> None:
    path = tiny.prompts_file(tmp_path, each=3)
    assert len(load_prompts(path)) == 6 and [p.kind for p in load_prompts(path, 1)] == ["code", "prose"]
    with pytest.raises(FileNotFoundError, match=r"no prompts at nowhere\.json"):
        load_prompts(tmp_path / "nowhere.json")
    path.write_text('{"prompts": []}')
    with pytest.raises(ValueError, match="holds no prompts"):
        load_prompts(path)


def test_the_target_scorer_agrees_with_the_model_in_every_blocking(models: Any) -> None:
    from flashspec.measure.certificate import certify, shape_noise, target_scorer

    scorer = target_scorer(models.target, Sampling())
    with torch.inference_mode():
        whole = models.target(torch.tensor([PROMPT]))[0, -1]
    rows = torch.stack([scorer(PROMPT, block) for block in (1, 2, 4, 6)])
    assert torch.allclose(rows, whole.expand_as(rows), atol=1e-4)
    assert shape_noise(rows) < 1e-4
    best = int(whole.argmax())
    planted = certify([best], [(best + 1) % tiny.VOCAB], PROMPT, scorer)
    assert planted is not None and planted.verdict == "defect"


def test_a_certificate_of_sampled_text_scores_with_the_noise_of_the_coupling(models: Any) -> None:
    from flashspec.measure.certificate import target_scorer

    entry = Entry("baseline", METHODS["baseline"], WARM)
    text = texts(models, entry, [Prompt("code", tuple(PROMPT))], 8)[0]
    scorer = target_scorer(models.target, WARM)
    for at in range(8):
        assert int(scorer([*PROMPT, *text[:at]], 4).argmax()) == text[at]

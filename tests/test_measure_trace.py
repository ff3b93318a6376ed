"""Replays give the counts of the live decode; a divergence certificate tells a rounding tie from a defect."""

import json
import shutil
from dataclasses import replace

import pytest
import shelf
import torch
from shelf import refused
from toys import PROMPT as START
from toys import duo, random_model, run, text

from flashspec import Method, Models, Sampling, generate, kernels, load
from flashspec.decoding.models import SHIPPED
from flashspec.measure import trace as tracing
from flashspec.measure.certificate import certify, first_difference, shape_noise, target_scorer
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.trace import record
from flashspec.models.family import DESIGNED, FAMILY, Design
from flashspec.models.folder import verify_digests
from flashspec.models.reader import SpanReader
from flashspec.once import Once
from flashspec.sampling import GREEDY
from flashspec.study.drafting import TWINS
from flashspec.study.family import accepted, records
from flashspec.theory import replayed as counted

PROMPTS = [Prompt("code", tuple(START)), Prompt("prose", (9, 9, 8, 2))]
DENSE, FLASH = Method("model"), Method("model", "flash")


def live(models, method, sampling, k, new=24):
    how = {"max_new_tokens": new, "seed": sampling.seed}
    asked = (models, replace(method, k=k), sampling.temperature, sampling.rule)
    runs = [run(*asked, prompt=list(p.ids), **how).stats for p in PROMPTS]
    return tuple(sum(getattr(one, name) for one in runs) for name in ("rounds", "drafted", "accepted", "emitted"))


def replayed(models, method, sampling, k, new=24):
    trace = record(Models(models.target), PROMPTS, sampling, new)
    alone = Models(models.draft, models.draft, heads=Once({("draft", "flash"): models.head("draft", "flash")}))
    return counted(tracing.replay_texts(trace, alone, method), k)


@pytest.mark.parametrize("method", [DENSE, FLASH], ids=["dense", "flash"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=5)], ids=["greedy", "coupled"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_replay_counts_what_the_live_decode_counts(method, sampling, k):
    assert replayed(duo(), method, sampling, k) == live(duo(), method, sampling, k) != live(duo(noise=2.0), method, sampling, k)


def test_speculative_sampling_is_replayed_in_expectation():
    models, tars = duo(), []
    expected = emitted = 0.0
    for seed in range(12):
        sampling = Sampling(1.0, seed=seed, rule="speculative")
        found = replayed(models, DENSE, sampling, 4, new=10)
        expected, emitted = expected + found.rounds, emitted + found.emitted
        tars.append(live(models, DENSE, sampling, 4, new=10)[0])
    spread = (sum((n - sum(tars) / 12) ** 2 for n in tars)) ** 0.5  # of the sum of independent counts
    assert abs(sum(tars) - expected) < 4 * spread
    assert abs(sum(tars) - emitted) > 3 * spread  # the control: a draft that is never kept


@pytest.fixture(scope="module")
def recorded(folders):
    models = load(folders["target"], folders["draft"])
    return record(models, [Prompt("code", (3, 1, 4))], Sampling(), 8)


def test_a_trace_is_stored_and_read_back_and_one_of_another_target_refused(recorded, folders, tmp_path):
    recorded.save(tmp_path / "trace.json")
    assert tracing.Trace.load(tmp_path / "trace.json") == recorded
    tracing.check_target(recorded, folders["target"])
    refused(r"recorded from another target \(digest .*, draft has ", tracing.check_target, recorded, folders["draft"])


def test_another_tokenizer_is_refused_with_the_ids_that_differ(recorded, tmp_path):
    from tokenizers import Tokenizer

    shelf.train_tokenizer(tmp_path / "other.json", "quite another text " * 40)
    tokenizer = Tokenizer.from_file(str(tmp_path / "other.json"))
    first = next(n for n, word in recorded.words.items() if tokenizer.id_to_token(n) != word)
    refused(f"recorded ids differ, such as {first} ", tracing.check_words, recorded, tokenizer)


def test_texts_that_depend_on_the_draft_and_texts_too_long_for_it_are_refused():
    models = duo()
    refused("depends on the draft", record, models, PROMPTS, Sampling(1.0, rule="typical"), 4)
    trace = record(models, PROMPTS, Sampling(), 60)
    learning = tracing.replay_texts(trace, models, Method("model", "in_context"))
    refused("'in_context' learns from verifications", list, learning)
    short = Models(models.target, random_model(0, layers=2, context=64))
    refused("draft's context holds 64", list, tracing.replay_texts(trace, short, DENSE))


def test_shipped_models_stay_below_the_limit():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 128_000_000
    assert max(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= 16 << 20


def test_the_designed_draft_is_a_point_of_the_family_ready_to_serve():
    folder = SHIPPED / DESIGNED
    verify_digests(folder)
    told = json.loads((folder / "speculative.json").read_text())
    assert told.pop("num_speculative_tokens") >= 1
    assert told == {"method": "draft_model", "model": "flashspec/data/designed"}
    assert all((folder / name).exists() for name in ("README.md", "curve.jsonl", "tokenizer.json", "flash_head.safetensors"))
    recipe = Design(**json.loads((folder / "design.json").read_text())["design"])
    assert [name for name, point in FAMILY.items() if point == recipe] == [TWINS[0]] and TWINS[1] == DESIGNED
    assert (SHIPPED.parents[1] / "book" / "results" / "family" / TWINS[0]).is_dir()


@pytest.mark.parametrize("k", [1, 3])
def test_a_record_counts_what_a_live_decode_counts(folders, tmp_path, k):
    """As records of the family are stored: the target's text, and the draft's best id at every token of it."""
    found = tmp_path / "family" / "point"
    found.mkdir(parents=True)
    shutil.copy(folders["draft"] / "config.json", found)
    models = load(folders["target"], folders["draft"], "float32", "cpu", "dense")
    prompts = load_prompts(folders["prompts"], 2)
    texts = [tracing.tell(models, prompt, GREEDY, 16) for prompt in prompts]
    best = [models.draft(torch.tensor([[*t.prompt, *t.tokens]]))[0].argmax(-1)[len(t.prompt) - 1 : -1].tolist() for t in texts]
    told = [{"tokens": text.tokens, "proposed": ids} for text, ids in zip(texts, best, strict=True)]
    (found / "proposals.json").write_text(json.dumps({"texts": told}))
    live = [generate(models, list(p.ids), Method("model", k=k), GREEDY, max_new_tokens=16, stop=()).stats for p in prompts]
    counts = counted(accepted(found), k)
    assert (counts.rounds, counts.accepted) == (sum(s.rounds for s in live), sum(s.accepted for s in live))
    (line,) = records(k, tmp_path).to_dict("records")
    assert line["draft"] == "point" and line["TAR"] == pytest.approx(sum(s.emitted for s in live) / counts.rounds)
    assert line["layers"] == models.draft.config.layers and line["body"] == models.draft.config.body_parameters
    assert records(k, tmp_path / "nowhere").empty


PROMPT = (7, 8)


def scorer(gap, noise):
    """Logits whose ids 1 and 2 lead by everything and lie `gap` apart; blockings move them by up to `noise`."""

    def score(prefix, block):
        logits = torch.full((50,), -9.0)
        logits[1], logits[2] = 5.0, 5.0 - gap
        return logits + (noise if block % 2 else 0.0)

    return score


def test_a_gap_inside_the_noise_is_a_tie_and_beyond_it_a_defect():
    tie, defect = (certify((3, 1, 4), (3, 2, 4), PROMPT, scorer(gap, noise=0.01)) for gap in (0.03, 0.05))
    assert (tie.verdict, tie.position, tie.tokens, defect.verdict) == ("numeric tie", 1, (1, 2), "defect")
    assert (tie.gap, tie.noise) == pytest.approx((0.03, 0.01), abs=1e-5)
    for token, gap, noise in ((30, 0.0, 0.01), (2, 1e-6, 0.0)):  # no contender, though the leading two tie; no noise
        certificate = certify((3, 1), (3, token), PROMPT, scorer(gap, noise))
        assert certificate.verdict == certificate._replace(gap=float("nan"), noise=1.0).verdict == "defect"
    assert certify((1, 2), (1, 2), PROMPT, scorer(0.0, 0.0)) is first_difference((1, 2), (1, 2)) is None
    assert [first_difference(*pair) for pair in (((1, 2), (1, 3)), ((1, 2), (1,)), ((), (4,)))] == [1, 1, 0]
    refused("compare equal lengths", certify, (1, 2), (1,), PROMPT, scorer(0.0, 0.0))


def test_the_target_scorer_agrees_with_the_model_in_every_blocking():
    target = duo(0, torch.float32).target
    scorer, whole = target_scorer(target, Sampling()), target(torch.tensor([START]))[0, -1]
    rows = torch.stack([scorer(START, block) for block in (1, 2, 4, 8)])
    assert torch.allclose(rows, whole.expand_as(rows), atol=1e-4) and shape_noise(rows) < 1e-4
    best = int(whole.argmax())
    assert certify([best], [(best + 1) % len(whole)], START, scorer).verdict == "defect"
    written = text(duo(), "baseline", 0.7)
    scorer = target_scorer(duo().target, Sampling(0.7, seed=7))
    assert [int(scorer([*START, *written[:at]], 4).argmax()) for at in range(8)] == written[:8]


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)
    return {(m, t): text(duo(m, torch.bfloat16), "baseline", t, max_new_tokens=60) for m in (0, 1) for t in (0.0, 0.7)}


def certificates(method, plain):
    found = []
    for (model, temperature), expected in plain.items():
        models = duo(model, torch.bfloat16)
        scorer = target_scorer(models.target, Sampling(temperature, seed=7))
        found.append(certify(expected, text(models, method, temperature, max_new_tokens=60), START, scorer))
    return [certificate for certificate in found if certificate is not None]


@pytest.mark.parametrize("method", ["dense", "hispec"])
def test_bfloat16_texts_of_a_sound_method_part_at_ties_only(plain, method):
    assert {certificate.verdict for certificate in certificates(method, plain)} <= {"numeric tie"}


def test_a_defect_planted_in_bfloat16_is_called_one(plain, monkeypatch):
    monkeypatch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n + (n > 0))))
    found = certificates("dense", plain)
    assert found and "defect" in {certificate.verdict for certificate in found}

"""A burst in one kernel call gives what reader, head and rule give in turn, bit for bit; verdicts are their torch twins'."""

from dataclasses import replace

import pytest
import torch
from shelf import refused
from toys import with_biases

from flashspec import Sampling, Scores, kernels
from flashspec.decoding.rules import KINDS, Drawn, SpeculativeSampling, Waiting
from flashspec.decoding.stages import Stage
from flashspec.decoding.ways import CompiledBurst, CompiledScore, fastest
from flashspec.heads import DenseHead, FlashHead, quantized
from flashspec.models.config import ModelConfig
from flashspec.models.packed import rounded
from flashspec.models.reader import SpanReader
from flashspec.models.synthetic import synthetic

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C compiler on this machine")
VOCAB, CONTEXT = 512, 48
SHAPE = ModelConfig("qwen3", VOCAB, 128, 128, 2, 4, 2, 32, context=64, eos=(0,))
OPT = replace(SHAPE, family="opt", kv_heads=4, attention_bias=True, mlp_bias=True)
HEADS = {
    "dense": lambda model: DenseHead(model.norm, model.head_weight),
    "int8": lambda model: quantized(model.head_weight, model.norm, 8),
    "int4": lambda model: quantized(model.head_weight, model.norm, 4),
    "flash": lambda model: FlashHead.build(model.head_weight, model.norm, cluster_size=8, probes=9, always=(3, 7, 500)),
    "flash int8": lambda model: FlashHead.build(model.head_weight, model.norm, cluster_size=16, probes=5, stage1="int8"),
    **{f"flash {bits} bits": lambda model, bits=bits, **size: FlashHead.build(
        kernels.pack(model.head_weight, bits), model.norm, probes=5, always=(3, 7, 500), **size) for bits in (4, 6, 8)},
}  # fmt: skip


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "opt"])
def model(request):
    if request.param == "int8":
        return rounded(synthetic(SHAPE, torch.float32), "int8")
    if request.param == "opt":
        return with_biases(synthetic(OPT, torch.bfloat16))
    return synthetic(SHAPE, getattr(torch, request.param))


def stage(model, head, rule, temperature, **sampling):
    law = KINDS[rule](Sampling(temperature, seed=3, rule=rule, **sampling), VOCAB)
    return Stage(SpanReader(model, context=CONTEXT), HEADS[head](model), law, way=fastest)


def played(stage):
    tokens, drawn, rows = torch.zeros(CONTEXT, dtype=torch.int64), [], []
    tokens[:9] = torch.arange(20, 29)
    for start, want, rewound in ((9, 0, 9), (9, 4, 10), (11, 5, 15), (16, 1, 16)):
        tokens[start - 1] = 7 * start
        burst, read = stage.write(tokens, start, want)
        drawn += burst
        rows.append(read)
        assert stage.reader.seen == (start + want - 1 if want else 0)
        stage.reader.rewind(rewound)
    return tokens, drawn, rows


def told(scores):
    return (scores.logits,) if scores.ids is None else (scores.logits, scores.ids)


def same(one, two):
    pairs = zip(one[1], two[1], strict=True)
    parts = [((*told(a.scores), a.sound, a.token), (*told(b.scores), b.sound, b.token)) for a, b in pairs]
    alike = all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in parts)
    return alike and torch.equal(one[0], two[0]) and one[2] == two[2]


@pytest.mark.parametrize(("rule", "temperature"), [("coupling", 0.0), ("coupling", 0.7), ("speculative", 1.0)])
@pytest.mark.parametrize("head", HEADS)
def test_one_call_writes_what_the_parts_write_in_turn(model, head, rule, temperature):
    fast, slow = (stage(model, head, rule, temperature)._replace(way=way) for way in (fastest, None))
    assert type(fast.fast_write) is CompiledBurst and slow.fast_write is None
    found = played(fast)
    assert same(found, played(slow)) and found[2] == [0, 12, 5, 1]
    assert (fast.fast_write.writer.times > 0).all()


def test_another_seed_and_forgotten_tokens_are_caught(model):
    one, two, three = (stage(model, "dense", "coupling", 1.0) for _ in range(3))
    two.rule.dice = two.rule.dice._replace(seed=4)
    assert not same(played(one), played(two))
    three.reader.advance(3)
    with pytest.raises(AssertionError):
        played(three)


def test_what_the_kernels_do_not_know_goes_step_by_step(model):
    plain = stage(model, "dense", "coupling", 1.0)
    cut = stage(model, "dense", "coupling", 1.0, top_k=5)
    doubtful = plain._replace(doubt=lambda scores: scores.logits[:, 0] > 0)
    above = above_an_exit(plain, model)
    assert [s.fast_write for s in (cut, doubtful, above)] == [None] * 3


def test_a_burst_marks_what_is_not_a_number_and_refuses_what_does_not_fit(model):
    broken = stage(model, "dense", "speculative", 1.0)
    weight = model.head_weight.detach().clone()
    weight[5] = torch.nan
    broken = broken._replace(head=DenseHead(model.norm, weight))
    tokens = torch.zeros(CONTEXT, dtype=torch.int64)
    assert not any(bool(d.sound) for d in broken.write(tokens, 3, 2)[0])
    refused("do not fit the context", lambda: broken.write(torch.zeros(CONTEXT + 9, dtype=torch.int64), CONTEXT, 4))


def test_the_best_numbers_are_a_stable_sorts():
    values = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    values[3], values[4], values[5, ::3] = values[3].round(), 0.0, -torch.inf
    wanted = values.sort(dim=1, descending=True, stable=True).indices[:, :64].sort(1).values
    assert torch.equal(kernels.best_numbers(values, 64), wanted) and not torch.equal(kernels.best_numbers(-values, 64), wanted)


def proposals(sparse, count, dice):
    if not sparse:
        return [Scores(None, torch.randn(1, VOCAB, generator=dice)) for _ in range(count)]
    ids = [torch.randperm(VOCAB, generator=dice)[None, :40] for _ in range(count)]
    return [Scores(i, torch.randn(1, 40, generator=dice).index_fill(1, torch.tensor([3]), -torch.inf)) for i in ids]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_verdict_in_one_call_is_its_torch_twins(sparse):
    rule, dice, kept = SpeculativeSampling(Sampling(1.0, seed=1, rule="speculative"), VOCAB), torch.Generator(), set()
    for seed in range(300):
        dice.manual_seed(seed)
        count = seed % 5
        theirs = proposals(sparse, count, dice)
        logits = torch.randn(count + 1, VOCAB, generator=dice)
        for i, q in enumerate(theirs):
            row = torch.arange(VOCAB)[None] if q.ids is None else q.ids
            logits[i, row[0]] += 2.0 * q.logits[0].clamp(min=-5)
        tokens = [int(q.pick(q.logits.softmax(-1).multinomial(1, generator=dice)[:, 0])) for q in theirs]
        scores, waiting = Scores(None, logits), Waiting(torch.tensor(tokens, dtype=torch.int64), theirs, 7 + seed, 1)
        fast, slow = rule.verify(scores, waiting), rule.judged(scores, waiting, rule.numbers(waiting))
        assert all(torch.equal(a, b) for a, b in zip(fast[:3], slow[:3], strict=True))
        kept.add((count, int(fast.kept)))
    assert len(kept) > 8, "verdicts of all lengths"


def above_an_exit(stage, model):
    """The same stage over the last layer alone, above a reader of the first, which has an exit's own layer."""
    below = SpanReader(model, 1, context=CONTEXT, last=model.blocks[0])
    return stage._replace(reader=SpanReader(model, below=below, context=CONTEXT))


@pytest.mark.parametrize("above", [False, True], ids=["whole", "above an exit"])
@pytest.mark.parametrize("head", ["dense", "int8", "flash", "flash 4 bits"])
def test_a_check_in_one_call_reads_and_scores_what_its_parts_do(model, head, above):
    fast, slow = (stage(model, head, "coupling", 1.0)._replace(way=way) for way in (fastest, None))
    if above:
        fast, slow = above_an_exit(fast, model), above_an_exit(slow, model)
    tokens = torch.arange(40, 70)
    assert type(fast.fast_score) is CompiledScore
    for first, stop, rewound in ((5, 9, 7), (8, 20, 20), (20, 21, 20)):
        waiting = [Drawn(tokens[:1], Scores(None, torch.zeros(1, VOCAB)), torch.tensor([True]))] * (stop - first)
        one, two = (each.judge(tokens[:stop], first, waiting, 1) for each in (fast, slow))
        assert all(map(torch.equal, told(one.scores), told(two.scores))) and one._replace(scores=two.scores) == two
        assert fast.reader.seen == slow.reader.seen == stop
        for reader in filter(None, (fast.reader, slow.reader, fast.reader.below, slow.reader.below)):
            reader.rewind(rewound)
    assert torch.equal(fast.reader.rows[:20], slow.reader.rows[:20])
    other = fast.judge(torch.arange(41, 71)[:21], 20, waiting, 1)
    assert not torch.equal(other.scores.logits, one.scores.logits)

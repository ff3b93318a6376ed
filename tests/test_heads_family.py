"""Every head by name: rows do not mix, drafts decode losslessly, and what is listed carries the exact logit.

What several threads ask for is made by one of them.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from prefixes import PREFIXES, PrefixHead, caught, dense, law, p_of, stack, weight
from shelf import normal, refused, refusing
from toys import TEMPERATURES, VOCAB, duo, random_model, run, text

from flashspec import Method, Models, Scores
from flashspec.heads import HEADS, ContextHead, FlashHead, Origin, PreviewHead, ShortlistHead, head_named, quantized
from flashspec.heads.base import Head
from flashspec.heads.cluster import from_assignments
from flashspec.heads.registry import RANKED, VARIANTS
from flashspec.once import Once

ROWS, WIDTH, IDS = 9, 32, 500
FULL = ("dense", "int8", "int4")  # heads that score every id
SHORT = [name for name in HEADS if "shortlist" in HEADS[name].options]
names = pytest.mark.parametrize("name", HEADS)
matrix, hidden = functools.partial(normal, IDS, WIDTH, seed=1), functools.partial(normal, ROWS, WIDTH, seed=2)


@functools.cache
def built(name, dtype=torch.float32):
    if name in RANKED:
        return ShortlistHead.build(matrix(dtype=dtype), torch.arange(IDS).flip(0), size=40 if name == "vocab_trim" else None)
    return head_named(name, Origin(matrix(dtype=dtype)))


def same(one, other):
    ids = one.ids is other.ids if one.ids is None or other.ids is None else torch.equal(one.ids, other.ids)
    return ids and torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@names
def test_many_rows_at_once_give_what_each_gives_alone(name, dtype):
    head, rows = built(name, dtype), hidden().to(dtype)
    alone = [head(rows[i : i + 1]) for i in range(ROWS)]
    ids = None if name in FULL else torch.cat([s.ids for s in alone])
    assert same(head(rows), Scores(ids, torch.cat([s.logits for s in alone])))
    refused("reads rows of shape", lambda: head(rows[:, 1:]))


def compiled_as_called(head):
    return head.scoring is None or same(Scores(*head.scoring(hidden())), head.score(head.states(hidden())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@names
def test_the_compiled_head_is_the_head(name, dtype):
    assert compiled_as_called(built(name, dtype))


def test_the_control_a_list_that_is_drafted_from_with_the_whole_weight_is_caught(monkeypatch):
    monkeypatch.setattr(ShortlistHead, "scoring", built("dense").scoring)
    assert built("dense").scoring is None or not compiled_as_called(built("fr_spec"))


@pytest.mark.parametrize("name", [name for name in HEADS if name not in FULL])
def test_every_listed_logit_is_the_dense_one_and_each_id_counts_once(name):
    scores, exact = built(name)(hidden()), built("dense")(hidden()).logits
    counts = scores.logits > -torch.inf
    assert counts.any(1).all() and torch.equal(scores.logits[counts], exact.gather(1, scores.ids)[counts])
    assert torch.zeros(ROWS, IDS).scatter_add_(1, scores.ids, counts.float()).max() == 1


def best(scores):
    return scores.pick(scores.logits.argmax(1))


@pytest.mark.parametrize("name", ["int8", "int4", "preview", "hnsw", "ivf", "ivfpq"])
def test_an_approximation_finds_the_best_id_more_often_than_chance(name):
    scores = built(name)(hidden())
    right = int((best(scores) == best(built("dense")(hidden()))).sum())
    assert right > ROWS * (0.5 if scores.ids is None else scores.ids.shape[1] / IDS)


@pytest.mark.parametrize("name", SHORT)
def test_listing_every_id_is_the_dense_head(name):
    head = built(name).with_plan(shortlist=IDS)
    if name in ("ivf", "ivfpq"):
        head = head.with_plan(probes=head.lists)
    assert torch.equal(best(head(hidden())), best(built("dense")(hidden())))


@names
def test_bytes_are_counted_from_what_is_read(name):
    head, row = built(name), WIDTH * 4
    assert 0 < head.bytes_read(1) <= head.bytes_read(3) <= 3 * head.bytes_read(1)
    assert head.rows_scored >= 1 and (head.hidden, head.vocab_size) == (WIDTH, IDS)
    panels, cells = -(-IDS // 16) * 16, WIDTH // 32
    known = {"dense": IDS * row, "int8": panels * cells * 36, "int4": panels * cells * 20, "fr_spec": 125 * row,
             "vocab_trim": 40 * row, "in_context": IDS * row, "preview": 8 * (WIDTH + IDS) * 4 + 8 * row}  # fmt: skip
    assert head.bytes_read(1) == known.get(name, head.bytes_read(1))


@functools.cache
def models(dtype=torch.float64):
    pair = duo(0, dtype)
    ranked = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))
    for name in RANKED:
        for which in ("draft", "target"):
            model = pair.model(which)
            pair.heads[which, name] = ShortlistHead.build(model.head_weight, ranked, model.norm)
    return pair


def method(name, **changes):
    shortlist = {"shortlist": 12} if name in SHORT else {}
    return Method(**{"draft": "model", "head": name, **shortlist, **changes})


@functools.cache
def baseline(temperature, dtype=torch.float64):
    return text(models(dtype), "baseline", temperature)


PLACES = {"self-speculation": (2,), "hispec": (2, 4)}
DRAFTING = {
    **{f"{name}, {place}": method(name, draft="none", exits=exits, k=2) for name in HEADS for place, exits in PLACES.items()},
    **{name: method(name) for name in HEADS},
    "in_context, eager": method("in_context", finalize="eager", k=6),
    "in_context, three stages": method("in_context", exits=(3,), k=2, interval=3),
}


@pytest.mark.parametrize("name", DRAFTING)
def test_every_head_prints_the_baseline_text(name):
    assert all(text(models(), DRAFTING[name], t) == baseline(t) for t in TEMPERATURES)
    if name in HEADS:
        assert text(models(torch.bfloat16), method(name, k=3), 0.7) == baseline(0.7, torch.bfloat16), "bit for bit in bfloat16"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["in torch", "compiled"])
@pytest.mark.parametrize("name", ["fr_spec", "vocab_trim", "in_context", "preview", "flash_int8"])
def test_the_heads_draft_otherwise_than_the_dense_one(name, dtype):
    kept = [sum(run(models(dtype), m, t).stats.accepted for t in TEMPERATURES) for m in (method("dense"), method(name))]
    assert kept[0] != kept[1]


def listed(head):
    return set(head(hidden()[:1]).ids[0].tolist())


def test_the_context_holds_what_was_seen_last():
    head = ContextHead(None, matrix(), shortlist=6, top=2)
    assert listed(head) == {0, 1, 2, 3, 4, 5}
    head.learn(torch.tensor([90, 91, 90, 92]), None)
    assert listed(head) == {90, 91, 92, 0, 1, 2}
    logits = torch.zeros(2, IDS)
    logits[0, [7, 8]], logits[1, [9, 8]] = torch.tensor([3.0, 2.0]), torch.tensor([3.0, 2.0])
    head.learn(torch.tensor([100]), Scores(None, logits))
    assert listed(head) == {90, 92, 7, 8, 9, 100}
    address = head.rows.data_ptr()
    head.learn(torch.tensor([300]), Scores(torch.tensor([[400, 401, 402]]), torch.tensor([[0.0, 2.0, 1.0]])))
    assert {300, 401, 402} < listed(head) and 400 not in listed(head) and head.rows.data_ptr() == address
    head.learn(torch.tensor([5]), None)
    assert listed(head) == {0, 1, 2, 3, 4, 5}


class LiveHead(Head):
    """A real head on one-hot rows of the toy models' prefixes, asked anew at every step."""

    vocab_size = 4

    def __init__(self, head):
        self.head, self.learn = head, head.learn

    def __call__(self, rows):
        return self.head(torch.eye(PREFIXES)[rows])


def small(name):
    if name.startswith("flash"):
        clusters = from_assignments(NEAR, torch.tensor([0, 1, 0, 1]), 2)
        return FlashHead.build(NEAR, None, clusters, probes=1, **VARIANTS.get(name, {}))
    ranked = {"fr_spec": torch.tensor([2, 0]), "vocab_trim": torch.tensor([3, 1])}
    made = ShortlistHead.build(NEAR, ranked[name]) if name in RANKED else head_named(name, Origin(NEAR))
    return made.with_plan(shortlist=2) if name in SHORT else made


NEAR = weight(1, 0)


@pytest.mark.parametrize("name", HEADS)
def test_speculative_sampling_keeps_the_law_under_every_head(name):
    head = LiveHead(small(name)) if name == "in_context" else PrefixHead(small(name))
    assert p_of(stack([head, dense(0)]), 400, law(0)) > 1e-4


def test_the_control_a_head_without_its_verifier_is_caught():
    assert caught(stack([LiveHead(small("flash"))]), law(0))


test_what_cannot_be_is_refused = refusing([
    (lambda: head_named("best", Origin(matrix())), "head must be one of dense.*, got 'best'"),
    (lambda: head_named("vocab_trim", Origin(matrix())), "what the target wrote, and this model's folder has no"),
    (lambda: head_named("fr_spec", Origin(matrix())), "flashspec draft rank --head fr_spec"),
    (lambda: Method(draft="model", head="int8", probes=3), "has no option 'probes'; its options: none"),
    (lambda: Method(draft="model", head="flash", shortlist=3), "has no option 'shortlist'; its options: probes"),
    (lambda: ShortlistHead.build(matrix(), torch.arange(IDS), size=IDS + 1), "shortlist must lie between 1 and the 500 ranked"),
    (lambda: ShortlistHead.build(matrix(), ranked=torch.tensor([0, IDS])), "lists ids from 0 to 499"),
    (lambda: ShortlistHead.build(matrix(), ranked=torch.tensor([4, 4])), "every id once"),
    (lambda: ContextHead(None, matrix(), shortlist=0), "shortlist must be at least 1"),
    (lambda: PreviewHead.build(matrix()).with_plan(shortlist=IDS + 1), "shortlist must lie between 1 and the 500 ids"),
    (lambda: quantized(matrix(), bits=3), "8, 6 or 4 bits"),
])  # fmt: skip


THREADS = 4


def together(ask):
    start = Barrier(THREADS)

    def asked():
        start.wait()
        return ask()

    with ThreadPoolExecutor(THREADS) as pool:
        return [pool.submit(asked) for _ in range(THREADS)]


@pytest.mark.parametrize("name", ["flash", "flash_int8", "int8"])
def test_four_threads_get_one_head(name, monkeypatch):
    models, built, build = Models(random_model(0)), [], FlashHead.build.__func__
    noting = classmethod(lambda *given, **named: built.append(build(*given, **named)) or built[-1])
    monkeypatch.setattr(FlashHead, "build", noting)
    found = [future.result() for future in together(lambda: models.head("target", name))]
    assert all(head is found[0] for head in found) and len(built) == (name != "int8")
    together(lambda: FlashHead.build(models.target.head_weight, models.target.norm))  # the control: each makes its own
    assert len(built) == THREADS + (name != "int8")


def test_what_fails_is_tried_again_by_the_next_thread_and_other_keys_do_not_wait():
    known, tries, waits, done = Once(), [], Event(), Event()

    def make():
        tries.append(object())
        if len(tries) == 1:
            raise MemoryError("no room")
        waits.set()
        assert done.wait(60)
        return tries[-1]

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(together, lambda: known.made("slow", make))
        assert waits.wait(60) and known.made("other", lambda: 1) == 1
        done.set()
    failed = [future for future in slow.result() if future.exception()]
    assert len(failed) == 1 and isinstance(failed[0].exception(), MemoryError) and len(tries) == 2
    assert all(future.result() is tries[1] for future in slow.result() if future not in failed)

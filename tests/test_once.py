"""What several threads ask for is made by one of them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from types import SimpleNamespace

import pytest
import torch
from toys import random_model

from flashspec import FlashHead, Models
from flashspec.once import Once
from flashspec.sampling import hashed_ids

THREADS = 4


@pytest.fixture
def models():
    return Models(random_model(0), random_model(1))


def together(ask):
    start = Barrier(THREADS)

    def asked():
        start.wait()
        return ask()

    with ThreadPoolExecutor(THREADS) as pool:
        return [pool.submit(asked) for _ in range(THREADS)]


@pytest.fixture
def builds(monkeypatch):
    counted, real = SimpleNamespace(done=[], after=[]), FlashHead.build.__func__

    def build(cls, weight, *args, **changes):
        head = real(cls, weight, *args, **changes)
        counted.done.append(head)
        for interfere in counted.after:
            interfere(weight)
        return head

    monkeypatch.setattr(FlashHead, "build", classmethod(build))
    return counted


@pytest.mark.parametrize("name", ["flash", "flash_int8", "int8"])
def test_four_threads_get_one_head(models, builds, name):
    found = [future.result() for future in together(lambda: models.head("target", name))]
    assert all(head is found[0] for head in found) and len(builds.done) == (name != "int8")
    together(lambda: FlashHead.build(models.target.head_weight, models.target.norm))  # the control: each makes its own
    assert len(builds.done) == THREADS + (name != "int8")


def test_a_build_that_fails_is_tried_again_by_the_next_thread(models, builds):
    def fail(weight):
        builds.after.clear()
        raise MemoryError("no room")

    builds.after.append(fail)
    found = together(lambda: models.head("target", "flash"))
    failed = [future for future in found if future.exception()]
    assert len(failed) == 1 and isinstance(failed[0].exception(), MemoryError)
    assert len({id(future.result()) for future in found if not future.exception()}) == 1 and len(builds.done) == 2


def test_a_head_does_not_wait_for_another(models, builds):
    draft_waits, target_done = Event(), Event()

    def wait(weight):
        if weight.data_ptr() == models.draft.head_weight.data_ptr():
            draft_waits.set()
            assert target_done.wait(60)

    builds.after.append(wait)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(models.head, "draft", "flash")
        assert draft_waits.wait(60)
        models.head("target", "flash")
        target_done.set()
        assert slow.result() is models.head("draft", "flash")


def test_values_made_once_can_be_copied():
    known = Once()
    assert known.made("a", lambda: 1) == known.made("a", lambda: 2) == 1
    for twin in (copy.deepcopy(known), pickle.loads(pickle.dumps(known))):
        assert twin == {"a": 1} and twin.made("b", lambda: 3) == 3 and "b" not in known


def test_threads_share_one_table_of_hashed_ids():
    tables = [asked.result() for asked in together(lambda: hashed_ids(1_000_003, torch.device("cpu")))]
    assert len({table.data_ptr() for table in tables}) == 1
    assert hashed_ids(1_000_003, torch.device("cpu")) is tables[0]
